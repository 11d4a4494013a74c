from copy import deepcopy

import pytest

from nnunetv2_kd.errors import KDError
from nnunetv2_kd.teachers.check import check_same_task, renamed_channel
from tests.small_networks import DATASET_JSON, architecture, plans


def check(change_plans=None, change_dataset=None, teacher_configuration="3d_fullres"):
    teacher, dataset = plans(), deepcopy(DATASET_JSON)
    if change_plans is not None:
        change_plans(teacher, teacher["configurations"]["3d_fullres"])
    if change_dataset is not None:
        change_dataset(dataset)
    check_same_task((teacher, dataset), (plans(), deepcopy(DATASET_JSON)), teacher_configuration, "3d_fullres")


def test_the_same_task():
    check()


def test_spacing_may_differ_by_rounding():
    check(lambda p, c: c.update(spacing=[1.0, 1.0, 1.00001]))


def test_another_width_depth_and_architecture_fit():
    check(lambda p, c: c.update(architecture=architecture(features=(4, 8, 8, 8), residual=True)))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            lambda p, c: c.update(spacing=[2.0, 1.0, 1.0]),
            r"spacing: teacher \[2.0, 1.0, 1.0\], student \[1.0, 1.0, 1.0\]",
        ),
        (lambda p, c: c.update(normalization_schemes=["CTNormalization"]), "normalization_schemes: teacher .'CTNorm"),
        (lambda p, c: p.update(transpose_forward=[2, 0, 1]), r"axis order: teacher \[2, 0, 1\]"),
        (
            lambda p, c: c.update(architecture=architecture(features=(4,) * 6)),
            r"\[16, 16, 16\] is not divisible by the teacher's stride \[32, 32, 32\]",
        ),
    ],
)
def test_other_voxels(change, expected):
    with pytest.raises(KDError, match=expected):
        check(change)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda d: d["labels"].update(c=3), r"labels: teacher .*'c': 3.*student"),
        (lambda d: d.update(channel_names={"0": "CT"}), "input channels: teacher .*CT"),
        (lambda d: d["channel_names"].update({"1": "T2"}), "input channels"),
        (lambda d: d.update(regions_class_order=[1, 2]), r"regions_class_order: teacher \[1, 2\], student None"),
        (lambda d: d.update(labels={"background": 0, "b": 1, "a": 2}), "labels"),
    ],
)
def test_other_labels_and_channels(change, expected):
    with pytest.raises(KDError, match=expected):
        check(change_dataset=change)


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.update(labels=dict(reversed(d["labels"].items()))),
        lambda d: d.update(labels={"a": [1], "b": 2, "background": 0}),
        lambda d: d.update(channel_names={"0": "mri"}),
        lambda d: d.update(channel_names={"0": "T1"}),
        lambda d: d.update(modality=d.pop("channel_names")),
    ],
)
def test_other_words_for_the_same(change):
    check(change_dataset=change)


def test_an_only_channel_of_another_name_is_reported():
    one, other = ({"channel_names": {"0": name}} for name in ("MRI", "T1"))
    (line,) = renamed_channel(one, other)
    assert line == "The teacher's only channel is called MRI, the student's T1: treated as the same."
    assert renamed_channel(one, {"channel_names": {"0": "mri"}}) == []


def test_channels_in_another_order():
    two = {**DATASET_JSON, "channel_names": {"0": "T1", "1": "T2"}}
    swapped = {**DATASET_JSON, "channel_names": {"0": "T2", "1": "T1"}}
    with pytest.raises(KDError, match=r"input channels: teacher \['T2', 'T1'\], student \['T1', 'T2'\]"):
        check_same_task((plans(), swapped), (plans(), two), "3d_fullres", "3d_fullres")


def test_regions_go_by_their_order():
    labels = {"background": 0, "whole": [1, 2], "core": 2}
    one, other = ({**DATASET_JSON, "labels": some} for some in (labels, dict(reversed(labels.items()))))
    with pytest.raises(KDError, match="labels: teacher"):
        check_same_task((plans(), one), (plans(), other), "3d_fullres", "3d_fullres")


def test_every_difference_is_reported():
    with pytest.raises(KDError) as caught:
        check(lambda p, c: c.update(spacing=[2, 1, 1]), lambda d: d["labels"].update(c=3))
    assert str(caught.value).count("\n  - ") == 2


def test_2d_teacher_of_a_3d_student():
    with pytest.raises(KDError, match="patch dimensions: teacher 2, student 3"):
        check(teacher_configuration="2d")


def test_ct_normalisation_compares_intensities():
    student, teacher = plans(), plans()
    for p in (student, teacher):
        p["configurations"]["3d_fullres"]["normalization_schemes"] = ["CTNormalization"]
    teacher["foreground_intensity_properties_per_channel"]["0"]["mean"] = 7.0
    with pytest.raises(KDError, match="foreground_intensity_properties_per_channel"):
        check_same_task((teacher, DATASET_JSON), (student, DATASET_JSON), "3d_fullres", "3d_fullres")
