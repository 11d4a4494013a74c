"""Products over the voxels, in parts and in one go."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nnunetv2_kd.losses.products import PART, in_parts, over_voxels, part_of


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("size", [1, 8, 24])
def test_parts_add_up(batch, size, rng):
    left, right = torch.randn(batch, 2, 24, generator=rng), torch.randn(batch, 5, 24, generator=rng)
    expected = torch.einsum("bmv,bnv->bmn", left.double(), right.double()).float()
    torch.testing.assert_close(in_parts(left, right, size), expected)
    torch.testing.assert_close(over_voxels(left, right), expected)


@settings(max_examples=50, deadline=None)
@given(volume=st.integers(1, 10**6))
def test_parts_divide_the_voxels(volume):
    size = part_of(volume)
    assert volume % size == 0
    assert size == volume or PART // 16 <= size <= PART
