"""The loss with and without a teacher, and the gradient of each of its parts."""

import pytest
import torch
from torch import nn

from nnunetv2_kd.distillation.gradients import SEGMENTATION, GradientBalance, gradient_norms
from nnunetv2_kd.errors import KDError
from nnunetv2_kd.methods import Method, Needs
from nnunetv2_kd.methods.region_affinity import RegionAffinity
from nnunetv2_kd.methods.voxel_kl import VoxelKL
from nnunetv2_kd.testing import Situation, World

FLAT = Situation(2, "labels")


class MeanOfLogits(nn.Module):
    """A segmentation loss with a gradient on the student."""

    weight_factors = (1.0, 0.0)

    def forward(self, output, target):
        return output[0].square().mean()


def test_outside_of_distilling_it_is_the_plain_loss():
    world = World(VoxelKL(), FLAT)
    world.loss.segmentation = MeanOfLogits()
    heads = world.student(world.data)
    plain = float(heads[0].detach().square().mean())
    assert float(world.loss(heads, world.targets)) == plain
    assert float(world.value()) > plain
    assert float(world.loss(heads, world.targets)) == plain
    assert world.loss.taps.take() == {}


def test_a_failing_step_leaves_nothing_set():
    world = World(RegionAffinity(stages=("encoder.0",)), FLAT)
    output_t = world.teacher({"data": world.data})

    def failing_step():
        with world.loss.distilling(output_t):
            world.student(world.data)
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        failing_step()
    assert world.loss.taps.take() == {}
    assert not world.loss.taps.recording
    heads = world.student(world.data)
    assert float(world.loss(heads, world.targets)) == 0


def test_a_head_that_nnunet_does_not_weigh_is_not_asked():
    world = World(VoxelKL(), FLAT)
    world.loss.segmentation.weight_factors = (1.0, 0.0)
    seen = []
    world.loss._compute = lambda terms, step: seen.append(step) or {name: term(step) for name, term in terms.items()}
    world.value()
    assert [tuple(z.shape[2:]) for z in seen[0].logits_s] == [(16, 16)]
    assert seen[0].head_weights == [1.0]


@pytest.mark.parametrize(
    ("value", "expected"),
    [(torch.ones(2), r"a tensor of shape \(2,\)"), (1.0, "float"), (None, "NoneType")],
)
def test_a_method_must_give_a_scalar(value, expected):
    class Odd(Method):
        name = "odd"
        needs = Needs(logits=True)

        def __call__(self, step):
            return value

    with pytest.raises(KDError, match=f"The method odd must return a scalar tensor, found {expected}"):
        World(Odd(), FLAT).value()


def test_a_student_is_no_part_of_its_loss():
    world = World(VoxelKL(), FLAT)
    assert list(world.loss.parameters()) == []


def test_gradient_lengths_closed_form():
    """Of ``3 w_0 + 4 w_1`` the length is 5; a part without a graph has none."""
    w = nn.Parameter(torch.tensor([1.0, 2.0]))
    lengths = gradient_norms({"a": (torch.tensor([3.0, 4.0]) * w).sum(), "b": torch.tensor(7.0)}, [w])
    assert float(lengths["a"]) == pytest.approx(5)
    assert float(lengths["b"]) == 0
    assert w.grad is None


def test_gradients_are_of_the_parts_as_they_count():
    world = World(VoxelKL(weight=2.0), FLAT)
    world.loss.segmentation = MeanOfLogits()
    heads, output_t = world.outputs()
    with world.loss.distilling(output_t, factor=0.5, measure=True):
        total = world.loss(heads, world.targets)
    term = total - heads[0].square().mean()
    parameters = list(world.student.parameters())
    expected = gradient_norms({"term": term, SEGMENTATION: heads[0].square().mean()}, parameters)
    assert float(world.loss.gradients["voxel_kl"]) == pytest.approx(float(expected["term"]), rel=1e-3)
    assert float(world.loss.gradients[SEGMENTATION]) == pytest.approx(float(expected[SEGMENTATION]), rel=1e-3)


def test_balanced_terms_pull_as_their_weights_say():
    world = World(VoxelKL(weight=0.25), FLAT, balance_gradients=True)
    world.loss.segmentation = MeanOfLogits()
    heads, output_t = world.outputs()
    with world.loss.distilling(output_t, measure=True):
        world.loss(heads, world.targets)
    lengths = world.loss.gradients
    assert float(lengths["voxel_kl"] / lengths[SEGMENTATION]) == pytest.approx(0.25, rel=1e-4)


def test_balance_means_over_measurements_and_resumes():
    balance = GradientBalance()
    assert balance.factor("a") == 1.0
    balance.update({SEGMENTATION: torch.tensor(2.0), "a": torch.tensor(4.0)})
    assert float(balance.factor("a")) == pytest.approx(0.5)
    balance.update({SEGMENTATION: torch.tensor(2.0), "a": torch.tensor(float("nan"))})
    assert float(balance.factor("a")) == pytest.approx(0.5)
    balance.update({SEGMENTATION: torch.tensor(2.0), "a": torch.tensor(14.0)})
    assert float(balance.factor("a")) == pytest.approx(2 / 5)
    other = GradientBalance()
    other.restore(balance.state(), torch.device("cpu"))
    assert float(other.factor("a")) == float(balance.factor("a"))
    other.update({SEGMENTATION: torch.tensor(2.0), "b": torch.tensor(0.0)})
    assert float(other.factor("b")) == 1.0
