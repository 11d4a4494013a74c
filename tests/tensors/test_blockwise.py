"""Mean powers over channels against the plain formula, and products over voxels in parts and all at once."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nnunetv2_kd.tensors import blockwise
from nnunetv2_kd.tensors.blockwise import PART, in_parts, mean_power, over_voxels, part_of


@pytest.fixture(params=[1, 40, 2**18], ids="{} values at once".format)
def _at_once(request, monkeypatch):
    monkeypatch.setitem(blockwise.VALUES_AT_ONCE, "cpu", request.param)


@pytest.mark.parametrize("spatial", [(4, 5), (4, 2, 3)])
@pytest.mark.parametrize("power", [2, 4])
@pytest.mark.usefixtures("_at_once")
def test_value_and_gradient_are_the_reference(power, spatial, rng):
    f = torch.randn(2, 3, *spatial, generator=rng, requires_grad=True)
    weights = torch.randn(2, *spatial, generator=rng)
    means = mean_power(f, power)
    np.testing.assert_allclose(means.detach(), (f.detach().double().numpy() ** power).mean(axis=1), rtol=1e-5)
    (means * weights).sum().backward()
    expected = power * f.detach().double().numpy() ** (power - 1) * weights.double().unsqueeze(1).numpy() / 3
    np.testing.assert_allclose(f.grad, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_does_not_overflow(dtype):
    f = torch.full((1, 2, 2, 2), 1000.0, dtype=dtype, requires_grad=True)
    means = mean_power(f, 4)
    assert means.dtype == torch.float32
    np.testing.assert_allclose(means.detach(), float(f.detach().double().flatten()[0]) ** 4, rtol=1e-5)
    (1e-12 * means).sum().backward()
    assert torch.isfinite(f.grad).all()
    assert f.grad.dtype == dtype


def test_other_powers_are_refused():
    with pytest.raises(ValueError, match="2 or 4, got 3"):
        mean_power(torch.zeros(1, 1, 2, 2), 3)


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
