"""Mean powers over channels, against the powers written out."""

import numpy as np
import pytest
import torch

from nnunetv2_kd.losses import powers
from nnunetv2_kd.losses.powers import mean_power


@pytest.fixture(params=[1, 40, 2**18], ids="{} values at once".format)
def _at_once(request, monkeypatch):
    monkeypatch.setitem(powers.VALUES_AT_ONCE, "cpu", request.param)


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
