"""What a partial teacher does not know forms one class with the background, in logits and in targets."""

import pytest
import torch

from nnunetv2_kd.distillation.loss import DistillationLoss
from nnunetv2_kd.methods import OWN_METHODS, VoxelKL
from nnunetv2_kd.networks.taps import Taps
from nnunetv2_kd.regions import Labels, known_heads
from nnunetv2_kd.teachers.teacher import TeacherOutput

LABELS = Labels(4, False, 4)


def test_all_heads_known_is_nothing_to_merge():
    assert known_heads(LABELS, None) is None
    assert known_heads(LABELS, (1, 2, 3)) is None
    assert known_heads(Labels(2, True, None), (0, 1)) is None


def test_the_rest_is_the_sum_of_what_is_not_known(rng):
    logits = torch.randn(2, 4, 3, 3, generator=rng)
    known = known_heads(LABELS, (1, 3))
    p = logits.softmax(dim=1)
    expected = torch.stack((p[:, 0] + p[:, 2], p[:, 1], p[:, 3]), dim=1)
    torch.testing.assert_close(known.logits(logits).softmax(dim=1), expected)
    target = torch.tensor([0, 1, 2, 3, 4]).view(1, 1, 5)
    assert known.target(target).tolist() == [[[0, 1, 0, 2, 4]]]
    assert known.merged_labels == Labels(3, False, 4)


def test_regions_that_are_not_known_are_left_out(rng):
    labels = Labels(3, True, 9)
    known = known_heads(labels, (0, 2))
    logits = torch.randn(1, 3, 4, generator=rng)
    assert torch.equal(known.logits(logits), logits[:, [0, 2]])
    target = torch.randn(1, 4, 4, generator=rng)  # three regions and the ignore mask
    assert torch.equal(known.target(target), target[:, [0, 2, 3]])
    assert known.merged_labels == Labels(2, True, 9)


def loss_and_gradient(methods, student, teacher, labels, known, target):
    student = student.clone().requires_grad_(True)
    loss = DistillationLoss(
        lambda output, target: output.sum() * 0, methods, labels, Taps(torch.nn.Identity(), {}), torch.nn.ModuleDict()
    )
    with loss.distilling(TeacherOutput([teacher], known=known)):
        total = loss(student, target)
    total.backward()
    return total.detach(), student.grad


def test_a_term_asks_nothing_about_what_is_not_known(rng):
    """However the student divides "anything else" into background and unknown structures, the term stays the same."""
    labels = Labels(3, False, None)
    student = torch.randn(2, 3, 4, 4, generator=rng)
    teacher = torch.randn(2, 2, 4, 4, generator=rng)
    target = torch.randint(0, 3, (2, 1, 4, 4), generator=rng).float()
    value, gradient = loss_and_gradient({"voxel_kl": VoxelKL()}, student, teacher, labels, (1,), target)
    p_s, p_t = student.softmax(dim=1), teacher.softmax(dim=1)
    merged = torch.stack((p_s[:, 0] + p_s[:, 2], p_s[:, 1]), dim=1)
    torch.testing.assert_close(value, (p_t * (p_t.log() - merged.log())).sum(dim=1).mean())
    other = student.clone()
    rest = student[:, [0, 2]].logsumexp(dim=1)
    other[:, 0], other[:, 2] = rest + torch.tensor(0.9).log(), rest + torch.tensor(0.1).log()
    again, _ = loss_and_gradient({"voxel_kl": VoxelKL()}, other, teacher, labels, (1,), target)
    torch.testing.assert_close(again, value)
    share = p_s[:, 2] / (p_s[:, 0] + p_s[:, 2])  # both of the rest are pushed alike, as their shares are
    torch.testing.assert_close(gradient[:, 2], share * (gradient[:, 0] + gradient[:, 2]))


@pytest.mark.parametrize("sigmoid", [False, True], ids=["softmax", "regions"])
@pytest.mark.parametrize(
    "method", [m for m in OWN_METHODS if m.needs.logits and not m.needs.features], ids=lambda method: method.name
)
def test_every_method_on_logits_takes_a_partial_teacher(rng, method, sigmoid):
    labels = Labels(3, sigmoid, None)
    student = torch.randn(2, 3, 4, 4, generator=rng)
    teacher = torch.randn(2, 2, 4, 4, generator=rng)
    target = torch.randint(0, 2 if sigmoid else 3, (2, 3 if sigmoid else 1, 4, 4), generator=rng).float()
    known = (0, 2) if sigmoid else (2,)
    value, gradient = loss_and_gradient({method.name: method()}, student, teacher, labels, known, target)
    assert torch.isfinite(value)
    assert torch.isfinite(gradient).all()
    assert gradient[:, 2].abs().sum() > 0
    assert not sigmoid or (gradient[:, 1] == 0).all()
