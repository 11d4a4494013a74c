"""DIST: Pearson correlations between and within classes."""

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr

from nnunetv2_kd.methods.dist import dist

SIZES = [(2, 3, 4, 3), (2, 3, 2, 4, 3)]


def reference(z_s, z_t, valid, temperature, intra, sigmoid):
    """With SciPy's correlation, in float64, voxel by voxel and class by class."""
    z_s, z_t = (z.double().numpy().reshape(*z.shape[:2], -1) / temperature for z in (z_s, z_t))
    if sigmoid:
        p_s, p_t = (1 / (1 + np.exp(-z)) for z in (z_s, z_t))
    else:
        p_s, p_t = (np.exp(z) / np.exp(z).sum(axis=1, keepdims=True) for z in (z_s, z_t))
    inside = [(b, v) for b in range(len(z_s)) for v in range(z_s.shape[2]) if valid.reshape(len(z_s), -1)[b, v]]
    within = [
        1 - pearsonr([p_s[b, k, v] for b, v in inside], [p_t[b, k, v] for b, v in inside]).statistic
        for k in range(z_s.shape[1])
    ]
    between = [0.0] if sigmoid else [1 - pearsonr(p_s[b, :, v], p_t[b, :, v]).statistic for b, v in inside]
    return temperature**2 * (np.mean(between) + intra * np.mean(within))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("sigmoid", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_dist_is_the_reference(size, sigmoid, temperature, rng):
    z_s, z_t = (2 * torch.randn(size, generator=rng) for _ in range(2))
    valid = torch.rand((size[0], 1, *size[2:]), generator=rng) > 0.3
    expected = reference(z_s, z_t, valid.numpy(), temperature, 0.5, sigmoid)
    assert float(dist(z_s, z_t, valid, temperature, 0.5, sigmoid)) == pytest.approx(expected, rel=1e-3)


def test_a_scaled_student_is_as_good():
    """Correlations do not change if sigmoid heads are twice as certain: with two voxels, any rising pair has a
    correlation of 1."""
    z_t = torch.tensor([1.0, -1.0]).view(1, 1, 1, 2)
    assert float(dist(2 * z_t, z_t, sigmoid=True)) == pytest.approx(0, abs=1e-5)
    assert float(dist(-z_t, z_t, sigmoid=True)) == pytest.approx(2, abs=1e-5)


def test_a_class_that_the_teacher_sees_nowhere_does_not_count(rng):
    z_t = torch.zeros(1, 2, 4, 4)
    z_s = torch.randn(1, 2, 4, 4, generator=rng).requires_grad_()
    loss = dist(z_s, z_t, sigmoid=True)
    loss.backward()
    assert float(loss.detach()) == 0
    assert torch.isfinite(z_s.grad).all()
