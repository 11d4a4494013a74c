import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nnunetv2_kd.methods.region_kl import region_kl, soft_membership
from nnunetv2_kd.methods.voxel_kl import divergence, voxel_kl
from nnunetv2_kd.regions.membership import label_regions
from tests.methods import reference

SIZES = [(2, 3, 6, 4), (2, 3, 4, 6, 2)]


def pair(size, rng, scale=3.0):
    return scale * torch.randn(size, generator=rng), scale * torch.randn(size, generator=rng)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("sigmoid", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_voxel_kl_is_the_reference(size, sigmoid, temperature, rng):
    z_s, z_t = pair(size, rng)
    valid = torch.rand((size[0], 1, *size[2:]), generator=rng) > 0.3
    for mask in (None, valid):
        expected = reference.voxel_kl(
            z_s.numpy(), z_t.numpy(), None if mask is None else mask.numpy(), temperature, sigmoid
        )
        assert float(voxel_kl(z_s, z_t, mask, temperature, sigmoid)) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("sigmoid", [False, True])
@pytest.mark.parametrize("by_labels", [False, True])
def test_region_kl_is_the_reference(size, sigmoid, by_labels, rng):
    z_s, z_t = pair(size, rng)
    labels = torch.randint(0, 3, (size[0], 1, *size[2:]), generator=rng)
    regions = label_regions(labels, 4) if by_labels else None  # the fourth class is absent
    expected = reference.region_kl(
        z_s.numpy(), z_t.numpy(), None if regions is None else regions.dense().numpy(), 2.0, sigmoid
    )
    assert float(region_kl(z_s, z_t, regions, 2.0, sigmoid)) == pytest.approx(expected, rel=1e-4)


def test_voxel_kl_closed_form():
    """Teacher sure of class 0, student undecided between two classes: log 2."""
    z_t = torch.tensor([50.0, -50.0]).view(1, 2, 1, 1)
    assert float(voxel_kl(torch.zeros(1, 2, 1, 1), z_t)) == pytest.approx(math.log(2))


def test_voxel_kl_sums_over_classes():
    """Twice as many heads with the same disagreement give twice the term; a mean over classes would stay the same."""
    z_s, z_t = torch.zeros(1, 2, 4, 4), torch.ones(1, 2, 4, 4)
    one = voxel_kl(z_s[:, :1], z_t[:, :1], sigmoid=True)
    assert float(voxel_kl(z_s, z_t, sigmoid=True)) == pytest.approx(2 * float(one))


def test_region_kl_weighs_a_small_region_like_a_large_one():
    """One voxel of 100 disagrees. Its region is half of the term, and a hundredth of the plain mean."""
    labels = torch.zeros(1, 1, 10, 10, dtype=torch.long)
    labels[..., 0, 0] = 1
    z_t = torch.zeros(1, 2, 10, 10)
    z_s = z_t.clone()
    z_s[:, 0, 0, 0] = 5.0
    at_the_voxel = float(divergence(z_s, z_t, 1.0, False)[0, 0, 0])
    assert float(region_kl(z_s, z_t, label_regions(labels, 2))) == pytest.approx(at_the_voxel / 2)
    assert float(voxel_kl(z_s, z_t)) == pytest.approx(at_the_voxel / 100)


def test_region_kl_hardly_sees_a_class_that_the_teacher_does_not():
    """The teacher gives a class 1e-4 everywhere and the student disagrees there: this class must not count as much as
    the others."""
    z_t = torch.tensor([5.0, 5.0, -4.2]).view(1, 3, 1, 1).expand(1, 3, 8, 8)
    z_s = torch.zeros_like(z_t).requires_grad_()
    mass = float(soft_membership(z_t, False)[:, 2].sum())
    assert mass < 0.01
    region_kl(z_s, z_t).backward()
    both = region_kl(z_s[:, :2], z_t[:, :2])
    assert float(region_kl(z_s, z_t)) == pytest.approx(float(both) + math.log(1.5), rel=0.01)


@pytest.mark.parametrize("term", [voxel_kl, region_kl])
@pytest.mark.parametrize("sigmoid", [False, True])
def test_zero_when_identical(term, sigmoid, rng):
    z = torch.randn(2, 3, 4, 4, generator=rng)
    assert float(term(z, z.clone(), sigmoid=sigmoid)) == pytest.approx(0, abs=1e-6)


def test_ignored_voxels_do_not_count(rng):
    z_s, z_t = pair((1, 3, 4, 4), rng)
    valid = torch.ones(1, 1, 4, 4, dtype=torch.bool)
    valid[..., :2] = False
    changed = z_s.clone()
    changed[..., :2] += 7
    assert float(voxel_kl(changed, z_t, valid)) == pytest.approx(float(voxel_kl(z_s, z_t, valid)))
    labels = torch.where(valid, 1, 3)
    regions = label_regions(labels, 3, ignore_label=3)
    assert float(region_kl(changed, z_t, regions)) == pytest.approx(float(region_kl(z_s, z_t, regions)))


def test_all_ignored_is_zero_and_not_nan(rng):
    z_s, z_t = pair((1, 3, 4, 4), rng)
    z_s.requires_grad_()
    nothing = label_regions(torch.full((1, 1, 4, 4), 3), 3, ignore_label=3)
    loss = voxel_kl(z_s, z_t, torch.zeros(1, 1, 4, 4, dtype=torch.bool)) + region_kl(z_s, z_t, nothing)
    loss.backward()
    assert float(loss) == 0
    assert torch.isfinite(z_s.grad).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("term", [voxel_kl, region_kl])
@pytest.mark.parametrize("sigmoid", [False, True])
def test_half_precision_with_extreme_logits(dtype, term, sigmoid):
    z_s = torch.tensor([3e4, -3e4, 0.0]).to(dtype).view(1, 3, 1, 1).requires_grad_()
    loss = term(z_s, -z_s.detach(), temperature=1.0, sigmoid=sigmoid)
    loss.backward()
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)
    assert torch.isfinite(z_s.grad).all()


def test_soft_membership_adds_background_to_regions(rng):
    z = torch.randn(1, 2, 3, 3, generator=rng)
    membership = soft_membership(z, sigmoid=True)
    np.testing.assert_allclose(membership.numpy(), reference.soft_membership(z.numpy(), True), rtol=1e-5)
    assert membership.shape[1] == 3


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"\(1, 2, 4, 4\) and \(1, 3, 4, 4\)"):
        voxel_kl(torch.zeros(1, 2, 4, 4), torch.zeros(1, 3, 4, 4))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), scale=st.floats(0.01, 30), temperature=st.floats(0.5, 8), sigmoid=st.booleans())
def test_never_negative(seed, scale, temperature, sigmoid):
    z_s, z_t = pair((2, 3, 3, 3), torch.Generator().manual_seed(seed), scale)
    for term in (voxel_kl, region_kl):
        assert float(term(z_s, z_t, temperature=temperature, sigmoid=sigmoid)) >= -1e-5
