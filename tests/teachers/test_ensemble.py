"""Several teachers as one."""

import weakref
from dataclasses import replace

import pytest
import torch

from nnunetv2_kd.config import CombineOptions
from nnunetv2_kd.errors import KDError
from nnunetv2_kd.record import TeacherRecord
from nnunetv2_kd.regions import region_graph
from nnunetv2_kd.regions.labels import Labels
from nnunetv2_kd.teachers.ensemble import EnsembleTeacher, check_different
from nnunetv2_kd.teachers.running import RunningTeacher
from tests.small_networks import network

LABELS = Labels(num_heads=3, has_regions=False, ignore_label=None)
IGNORING = Labels(num_heads=3, has_regions=False, ignore_label=3)
REGIONS = Labels(num_heads=3, has_regions=True, ignore_label=None)


def make_teacher(width=8, sha="0", **kwargs):
    net = network(features=(width, 2 * width, 4 * width), **kwargs)
    teacher = RunningTeacher(net, TeacherRecord("folder", sha, "c.pth", sha, "nnUNetTrainer", 1, 1, 0), [True, True])
    teacher.tap({"encoder.1": "encoder.1"})
    return teacher


@pytest.fixture
def batch(rng):
    data = torch.randn(2, 1, 8, 8, 8, generator=rng)
    target = torch.randint(0, 3, (2, 1, 8, 8, 8), generator=rng)
    return data, [target, target[:, :, ::2, ::2, ::2]]


def probabilities(teacher, data):
    return [z.softmax(1) for z in teacher.run(data).logits]


def test_mean_is_the_mean_of_probabilities(batch):
    """Of networks of different width and architecture."""
    data, targets = batch
    one, other = make_teacher(8), make_teacher(4, residual=True)
    output = EnsembleTeacher([one, other], [3, 1], CombineOptions(), LABELS).run(data, targets)
    for head, p, q in zip(output.logits, probabilities(one, data), probabilities(other, data), strict=True):
        torch.testing.assert_close(head.softmax(1), 0.75 * p + 0.25 * q, rtol=1e-4, atol=1e-5)
    assert output.features == {}


def test_edges_are_mixed_and_not_features(batch):
    data, targets = batch
    teachers = [make_teacher(8), make_teacher(4)]
    output = EnsembleTeacher(teachers, [1, 1], CombineOptions(), LABELS).run(data, targets)
    membership = LABELS.regions(targets[0])
    own = [region_graph(t.run(data).features["encoder.1"], membership)[0] for t in teachers]
    torch.testing.assert_close(output.edges["encoder.1"], (own[0] + own[1]) / 2)


@pytest.mark.parametrize("labels", [LABELS, IGNORING, REGIONS])
@pytest.mark.parametrize("rule", ["mean", "confidence", "region"])
def test_two_equal_teachers_answer_as_one(batch, rule, labels):
    data, targets = batch
    if labels.has_regions:
        targets = [torch.cat([y == k for k in range(3)], dim=1).float() for y in targets]
    teacher = make_teacher()
    output = EnsembleTeacher([teacher, teacher], [1, 1], CombineOptions(rule=rule), labels).run(data, targets)
    activate = torch.sigmoid if labels.has_regions else lambda z: z.softmax(1)
    for mixed, own in zip(output.logits, teacher.run(data).logits, strict=True):
        torch.testing.assert_close(activate(mixed), activate(own), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rule", ["confidence", "region"])
def test_the_better_teacher_is_heard(batch, rule):
    """The head of one teacher is replaced by the truth."""
    data, targets = batch
    ensemble = EnsembleTeacher([make_teacher(), make_teacher()], [1, 1], CombineOptions(rule=rule, tau=0.5), LABELS)

    run = ensemble.teachers[1].run
    ensemble.teachers[1].run = lambda data: replace(run(data), logits=[10 * LABELS.regions(y).dense() for y in targets])
    ensemble.run(data, targets)
    shares = ensemble.shares()
    assert list(shares) == ["weight_of_teacher_1", "weight_of_teacher_2"]
    assert shares["weight_of_teacher_2"] > 0.6
    assert float(sum(shares.values())) == pytest.approx(1)


def test_ignored_voxels_fall_back_to_the_mean(batch):
    data, targets = batch
    nothing = [torch.full_like(y, 3) for y in targets]
    teachers = [make_teacher(), make_teacher(4)]
    by_rule = EnsembleTeacher(teachers, [1, 3], CombineOptions(rule="region"), IGNORING).run(data, nothing)
    mean = EnsembleTeacher(teachers, [1, 3], CombineOptions(), IGNORING).run(data, nothing)
    torch.testing.assert_close(by_rule.logits, mean.logits)


def test_never_two_sets_of_features_at_once(batch):
    data, targets = batch
    alive = []

    def watched(teacher):
        run = teacher.run

        def run_and_watch(data):
            assert not [1 for features in alive if features() is not None]
            output = run(data)
            alive.extend(weakref.ref(features) for features in output.features.values())
            return output

        teacher.run = run_and_watch
        return teacher

    teachers = [watched(make_teacher()) for _ in range(3)]
    EnsembleTeacher(teachers, [1, 1, 1], CombineOptions(), LABELS).run(data, targets)
    assert len(alive) == 3


def test_a_head_that_one_teacher_lacks_is_left_out(batch):
    data, targets = batch
    single = make_teacher()
    single.trained_heads = [True, False]
    output = EnsembleTeacher([make_teacher(), single], [1, 1], CombineOptions(), LABELS).run(data, targets)
    assert len(output.logits) == 1
    with pytest.raises(KDError, match="no segmentation head of the same size"):
        EnsembleTeacher([single, single], [1, 1], CombineOptions(), LABELS).run(data, targets[1:])


def test_the_same_teacher_twice():
    check_different([make_teacher(sha="1"), make_teacher(sha="2")])
    with pytest.raises(KDError, match=r"same teacher is named twice.*give it a larger weight"):
        check_different([make_teacher(sha="1"), make_teacher(sha="2"), make_teacher(sha="1")])
