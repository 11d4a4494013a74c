import numpy as np
import pytest
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunetv2_kd.unlabelled.pseudo_labels import Mean, Member, Rules, pseudo_labels

CLASSES = LabelManager({"background": 0, "front": 1, "back": 2}, None)
STRUCTURES = {"front": 1, "back": 2}
REGIONS = LabelManager({"background": 0, "whole": [1, 2], "core": 2}, [1, 2])
IGNORE = 3


def of(*voxels):
    """Probabilities ``(K, 1, V)`` of voxels."""
    return np.array(voxels, dtype=np.float32).T[:, None]


def says(*values, known=STRUCTURES):
    return Member(np.array([values], dtype=np.uint8), known)


def test_a_voxel_is_ignored_below_the_confidence():
    probabilities = of([0.9, 0.1, 0.0], [0.1, 0.7, 0.2], [0.2, 0.35, 0.45])
    found = pseudo_labels(probabilities, [says(0, 1, 2)], CLASSES, STRUCTURES, IGNORE, Rules(0.6, 1, 0.7))
    assert found.segmentation.tolist() == [[0, 1, IGNORE]]
    assert (found.ignored, found.agreement) == (1, None)
    assert found.voxels == {"front": 1, "back": 1}


def test_every_voxel_of_one_teacher_is_labelled_without_a_confidence():
    probabilities = of([0.4, 0.3, 0.3], [0.3, 0.4, 0.3])
    found = pseudo_labels(probabilities, [says(0, 1)], CLASSES, STRUCTURES, IGNORE, Rules(0, 1, 0.7))
    assert found.segmentation.tolist() == [[0, 1]]
    assert not Rules(0, 1, 0.7).ignores(1)
    assert Rules(0, 1, 0.7).ignores(2)
    assert Rules(0.1, 0, 0).ignores(1)


@pytest.mark.parametrize(("votes", "expected"), [(1.0, [0, IGNORE, IGNORE]), (2 / 3, [0, 1, IGNORE]), (0.0, [0, 1, 2])])
def test_a_voxel_is_ignored_where_too_few_teachers_give_its_label(votes, expected):
    members = [says(0, 1, 2), says(0, 1, 0), says(0, 0, 1)]
    mean = of([0.8, 0.1, 0.1], [0.4, 0.5, 0.1], [0.3, 0.3, 0.4])
    found = pseudo_labels(mean, members, CLASSES, STRUCTURES, IGNORE, Rules(0, votes, 0))
    assert found.segmentation.tolist() == [expected]


def test_agreement_is_the_mean_dice_of_the_teachers_with_their_mean():
    mean = of([0.1, 0.9, 0.0], [0.1, 0.9, 0.0], [0.9, 0.1, 0.0])
    members = [says(1, 1, 0), says(1, 0, 0)]
    found = pseudo_labels(mean, members, CLASSES, STRUCTURES, IGNORE, Rules(0, 0, 0))
    assert found.agreement == pytest.approx((1 + 2 / 3) / 2)  # of the front alone: nobody sees the back
    nothing = pseudo_labels(of([1.0, 0, 0]), [says(0)] * 2, CLASSES, STRUCTURES, IGNORE, Rules(0, 0, 0))
    assert nothing.agreement == 1


def test_of_regions_the_least_sure_one_decides():
    probabilities = of([0.9, 0.45], [0.95, 0.1], [0.05, 0.0])  # whole, core
    found = pseudo_labels(
        probabilities, [says(1, 1, 0)], REGIONS, {"whole": (1, 2), "core": 2}, IGNORE, Rules(0.8, 1, 0)
    )
    assert found.segmentation.tolist() == [[IGNORE, 1, 0]]
    assert found.voxels == {"whole": 2, "core": 0}


def test_probabilities_that_are_no_numbers_are_refused():
    with pytest.raises(ValueError, match="not numbers"):
        pseudo_labels(of([np.nan, 0, 0]), [says(0)], CLASSES, STRUCTURES, IGNORE, Rules(0, 1, 0))


def test_a_teacher_has_no_say_in_what_it_does_not_know():
    mean = of([0.0, 0.1, 0.9], [0.0, 0.9, 0.1], [0.9, 0.1, 0.0])
    front, back = says(0, 1, 0, known={"front": 1}), says(2, 0, 2, known={"back": 2})
    found = pseudo_labels(mean, [front, back], CLASSES, STRUCTURES, IGNORE, Rules(0, 1, 0))
    assert found.segmentation.tolist() == [[2, 1, IGNORE]]  # at the last voxel one of them sees the back
    assert found.agreement == pytest.approx((1 + 2 / 3) / 2)


def test_of_overlapping_regions_a_teacher_that_knows_the_whole_agrees_with_its_core():
    mean, whole = of([0.9, 0.9], [0.9, 0.1]), {"whole": (1, 2)}
    members = [says(1, 1, known=whole), says(2, 1, known={"whole": (1, 2), "core": 2})]
    found = pseudo_labels(mean, members, REGIONS, whole | {"core": 2}, IGNORE, Rules(0, 1, 0))
    assert found.segmentation.tolist() == [[2, 1]]


def test_the_mean_is_of_those_that_know_a_structure():
    mean = Mean(2, sigmoid=False)
    mean.add(np.array([[0.5, 0.9]], dtype=np.float32), [0])
    mean.add(np.array([[0.3, 0.7], [0.2, 0.9]], dtype=np.float32), [0, 1])
    front, back = np.array([0.4, 0.8]), np.array([0.2, 0.9])
    excess = np.maximum(front + back, 1)
    expected = np.stack((1 - (front + back) / excess, front / excess, back / excess))
    assert mean.heads() == pytest.approx(expected, abs=1e-6)


def test_regions_are_averaged_one_by_one_and_have_no_background():
    mean = Mean(3, sigmoid=True)
    mean.add(np.array([[0.8], [0.6]], dtype=np.float32), [0, 2])
    mean.add(np.array([[0.4]], dtype=np.float32), [0])
    assert mean.heads() == pytest.approx(np.array([[0.6], [0.0], [0.6]]))
