"""Sums over regions against an independent float64 reference, their gradients, and what they must not cost."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nnunetv2_kd.losses import Regions, label_regions, overlapping_regions, region_vectors
from nnunetv2_kd.losses import cells as cells_module
from nnunetv2_kd.losses.cells import block_size
from tests.losses import reference

SPATIAL = [(8, 12), (8, 4, 12)]


def dense_sums(features, membership, factor):
    """``(B, K, C)`` float64."""
    weights = reference.area_average(np.asarray(membership, dtype=np.float64), factor)
    f = features.double().numpy()
    return np.einsum("bkv,bcv->bkc", weights.reshape(*weights.shape[:2], -1), f.reshape(*f.shape[:2], -1))


def regions_for(kind, spatial, rng):
    if kind == "labels":
        return label_regions(torch.randint(0, 6, (2, 1, *spatial), generator=rng), 6)
    if kind == "ignored":
        return label_regions(torch.randint(0, 6, (2, 1, *spatial), generator=rng), 5, ignore_label=5)
    targets = (torch.rand((2, 4, *spatial), generator=rng) > 0.6).float()
    return overlapping_regions(targets, has_ignore=kind == "overlapping, ignored")


@pytest.fixture(params=["labels", "ignored", "overlapping", "overlapping, ignored"])
def kind(request):
    return request.param


@pytest.fixture(params=[1, 7, 2048], ids="block of {}".format)
def block(request, monkeypatch):
    monkeypatch.setattr(cells_module, "BLOCK", request.param)
    monkeypatch.setitem(cells_module.CELLS_AT_ONCE, "cpu", 3 * request.param)


@pytest.mark.parametrize("spatial", SPATIAL)
@pytest.mark.parametrize("factor", [1, 2, 4])
def test_sums_are_the_reference(kind, spatial, factor, block, rng):
    regions = regions_for(kind, spatial, rng)
    f = torch.randn(2, 3, *(s // factor for s in spatial), generator=rng)
    np.testing.assert_allclose(regions.sums(f), dense_sums(f, regions.dense(), factor), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("spatial", SPATIAL)
@pytest.mark.parametrize("factor", [1, 2])
def test_spread_is_the_adjoint_of_sums(kind, spatial, factor, block, rng):
    """<spread(a), F> = <a, sums(F)>, and each one's gradient is the other."""
    regions, size = regions_for(kind, spatial, rng), tuple(s // factor for s in spatial)
    f = torch.randn(2, 3, *size, generator=rng, requires_grad=True)
    a = torch.randn(2, regions.count, 3, generator=rng, requires_grad=True)
    spread, sums = regions.spread(a, size), regions.sums(f)
    assert float((spread * f).sum()) == pytest.approx(float((sums * a).sum()), rel=1e-3, abs=1e-4)
    (of_f,) = torch.autograd.grad((sums * a.detach()).sum(), f)
    (of_a,) = torch.autograd.grad((spread * f.detach()).sum(), a)
    np.testing.assert_allclose(of_f, spread.detach(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(of_a, sums.detach(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("factor", [1, 2])
def test_project_is_spread_times_features(kind, factor, block, rng):
    regions, size = regions_for(kind, (8, 12), rng), (8 // factor, 12 // factor)
    f = torch.randn(2, 3, *size, generator=rng, requires_grad=True)
    a = torch.randn(2, regions.count, 3, generator=rng, requires_grad=True)
    along, expected = regions.project(a, f), (regions.spread(a, size) * f).sum(dim=1)
    np.testing.assert_allclose(along.detach(), expected.detach(), rtol=1e-4, atol=1e-5)
    weights = torch.randn(along.shape, generator=rng)
    for own, other in zip(
        torch.autograd.grad((along * weights).sum(), (a, f)),
        torch.autograd.grad((expected * weights).sum(), (a, f)),
        strict=True,
    ):
        np.testing.assert_allclose(own, other, rtol=1e-4, atol=1e-4)


def test_features_that_are_a_transposed_view(rng):
    """Their blocks are copies: a gradient must not be written into one."""
    regions = regions_for("labels", (8, 4, 12), rng)
    f = torch.randn(2, 3, 12, 4, 8, generator=rng).permute(0, 1, 4, 3, 2)
    a = torch.randn(2, regions.count, 3, generator=rng)
    gradients = []
    for own in (f.detach().requires_grad_(), f.contiguous().detach().requires_grad_()):
        (regions.project(a, own) + regions.spread(regions.sums(own), f.shape[2:]).sum(dim=1)).square().sum().backward()
        gradients.append(own.grad)
    np.testing.assert_allclose(*gradients, rtol=1e-4, atol=1e-4)


def test_too_many_overlapping_regions_are_refused():
    with pytest.raises(ValueError, match="at most 62 overlapping regions, got 63"):
        overlapping_regions(torch.zeros(1, 63, 2, 2))


@pytest.mark.parametrize("factor", [1, 2])
def test_mass_and_inside(kind, factor, rng):
    regions = regions_for(kind, (8, 12), rng)
    size = (8 // factor, 12 // factor)
    average = reference.area_average(regions.dense().double().numpy(), factor)
    np.testing.assert_allclose(regions.mass(size), average.sum(axis=(2, 3)), rtol=1e-6)
    np.testing.assert_allclose(regions.inside(size), average.sum(axis=1).clip(max=1), rtol=1e-6)


def test_more_regions_than_bits_of_a_table(rng, monkeypatch):
    targets = (torch.rand((2, 5, 4, 4), generator=rng) > 0.5).float()
    expected = overlapping_regions(targets, has_ignore=True)
    monkeypatch.setattr("nnunetv2_kd.losses.regions.MOST_BITS", 3)
    regions = overlapping_regions(targets, has_ignore=True)
    assert len(regions.table) < len(expected.table)
    assert torch.equal(regions.dense(), expected.dense())


def test_every_class_in_one_block(rng):
    """300 classes of noise: more than a byte can count."""
    regions = label_regions(torch.randint(0, 300, (1, 1, 64, 64), generator=rng), 300)
    f = torch.randn(1, 2, 64, 64, generator=rng)
    np.testing.assert_allclose(regions.sums(f), dense_sums(f, regions.dense(), 1), rtol=1e-4, atol=1e-5)


def test_channels_last_features_are_summed_alike(rng):
    regions = regions_for("labels", (8, 12), rng)
    f = torch.randn(2, 3, 8, 12, generator=rng)
    last = f.to(memory_format=torch.channels_last)
    np.testing.assert_allclose(regions.sums(last), regions.sums(f), rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32(dtype, rng):
    regions = label_regions(torch.zeros(1, 1, 64, 64), 2)
    f = (100 + torch.rand(1, 2, 64, 64, generator=rng)).to(dtype).requires_grad_()
    vectors, _ = region_vectors(f, regions)
    assert vectors.dtype == torch.float32
    np.testing.assert_allclose(vectors[0, 0].detach(), f.detach().double().mean(dim=(0, 2, 3)), rtol=1e-5)
    vectors.sum().backward()
    assert f.grad.dtype == dtype


def test_a_grid_that_does_not_divide_is_refused():
    regions = label_regions(torch.zeros(1, 1, 8, 8), 2)
    with pytest.raises(ValueError, match=r"divides that of the regions, \(8, 8\), got \(4, 3\)"):
        regions.sums(torch.zeros(1, 2, 4, 3))
    with pytest.raises(ValueError, match=r"got \(16, 16\)"):
        regions.inside((16, 16))
    with pytest.raises(ValueError, match=r"got \(8,\)"):
        regions.mass((8,))


@settings(max_examples=50, deadline=None)
@given(volume=st.integers(1, 10**6))
def test_blocks_divide_the_grid(volume):
    size, most = block_size(volume), cells_module.BLOCK
    assert volume % size == 0
    assert size == volume or most // 16 <= size <= most


def test_the_cells_of_a_grid_are_made_once(monkeypatch):
    made = []
    real = cells_module.Cells
    monkeypatch.setattr("nnunetv2_kd.losses.regions.Cells", lambda *a: made.append(a[2]) or real(*a))
    regions = Regions(torch.zeros(1, 4, 4, dtype=torch.long), torch.eye(2))
    for size in ((4, 4), (2, 2), (4, 4)):
        regions.sums(torch.ones(1, 1, *size))
    assert made == [(4, 4), (2, 2)]
