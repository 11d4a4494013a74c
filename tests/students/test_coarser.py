"""Coarser students: the spacing, and nnU-Net's plans for it."""

import math

import pytest

from nnunetv2_kd.errors import KDError
from nnunetv2_kd.students.coarser import check_spacing, coarser_spacing


@pytest.mark.parametrize(
    ("spacing", "times", "expected"),
    [
        ([1.0, 1.0, 1.0], 2, [2.0, 2.0, 2.0]),
        ([2.5, 0.8, 0.8], 2, [2.5, 2.2627, 2.2627]),  # a cube of that volume would be finer than the slices
        ([5.0, 0.8, 0.8], 1.5, [5.0, 1.4697, 1.4697]),
        ([1.0, 0.5, 0.5], 2, [1.26, 1.26, 1.26]),
        ([0.7, 0.7], 3, [2.1, 2.1]),
    ],
)
def test_as_isotropic_as_the_data_allow(spacing, times, expected):
    found = coarser_spacing(spacing, times)
    assert found == pytest.approx(expected, abs=2e-3)
    assert math.prod(found) == pytest.approx(math.prod(spacing) * times ** len(spacing), rel=1e-3)
    assert all(now >= before for now, before in zip(found, spacing, strict=True))


@pytest.mark.parametrize("times", [1, 0.5, -2, math.nan, math.inf])
def test_coarser_means_fewer_voxels(times):
    with pytest.raises(KDError, match="--coarser must be above 1"):
        coarser_spacing([1.0, 1.0, 1.0], times)


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ([2.0, 2.0], r"expected 3 numbers, like the teacher's \[1.0, 1.0, 2.0\]"),
        ([2.0, 0.0, 2.0], "expected numbers above 0, in mm"),
        ([2.0, math.nan, 2.0], "expected numbers above 0, in mm"),
        ([1.0, 1.0, 2.0], "gives no fewer voxels than the teacher's"),
    ],
)
def test_spacings_that_are_refused(wanted, expected):
    with pytest.raises(KDError, match=expected):
        check_spacing([1.0, 1.0, 2.0], wanted)


def test_a_spacing_may_be_finer_along_an_axis():
    assert check_spacing([5.0, 1.0, 1.0], [2.5, 2.5, 2.5]) == [2.5, 2.5, 2.5]
