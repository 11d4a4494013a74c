"""Sums over regions against an independent float64 reference, their gradients, and limits on their cost."""

import numpy as np
import pytest
import torch

from nnunetv2_kd.regions import cpu_kernels, region_vectors
from nnunetv2_kd.regions import membership as regions_module
from nnunetv2_kd.regions.accelerator_sums import DenseSums, ScatteredSums
from nnunetv2_kd.regions.grid_sums import grid_sums, project, region_sums, spread
from nnunetv2_kd.regions.membership import Regions, label_regions, overlapping_regions
from tests.methods import reference

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


@pytest.fixture(params=[grid_sums, DenseSums, ScatteredSums], ids=["runs", "dense", "scattered"])
def way(request, monkeypatch):
    """Run by run, as on a CPU; and dense or scattered, as elsewhere."""
    monkeypatch.setattr(regions_module, "grid_sums", request.param)


@pytest.mark.parametrize("spatial", SPATIAL)
@pytest.mark.parametrize("factor", [1, 2, 4])
def test_sums_are_the_reference(kind, spatial, factor, way, rng):
    regions = regions_for(kind, spatial, rng)
    f = torch.randn(2, 11, *(s // factor for s in spatial), generator=rng)
    np.testing.assert_allclose(regions.sums(f), dense_sums(f, regions.dense(), factor), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("spatial", SPATIAL)
@pytest.mark.parametrize("factor", [1, 2])
def test_spread_is_the_adjoint_of_sums(kind, spatial, factor, way, rng):
    """<spread(a), F> = <a, sums(F)>, and each one's gradient is the other."""
    regions, size = regions_for(kind, spatial, rng), tuple(s // factor for s in spatial)
    f = torch.randn(2, 3, *size, generator=rng, requires_grad=True)
    a = torch.randn(2, regions.count, 3, generator=rng, requires_grad=True)
    maps, sums = regions.spread(a, size), regions.sums(f)
    assert (maps * f).sum().item() == pytest.approx((sums * a).sum().item(), rel=1e-3, abs=1e-4)
    (of_f,) = torch.autograd.grad((sums * a.detach()).sum(), f)
    (of_a,) = torch.autograd.grad((maps * f.detach()).sum(), a)
    np.testing.assert_allclose(of_f, maps.detach(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(of_a, sums.detach(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("factor", [1, 2])
def test_project_is_spread_times_features(kind, factor, way, rng):
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


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.inference_mode])
def test_every_sample_in_a_thread_of_its_own(mode, monkeypatch, rng):
    """As on a machine with several cores: `no_grad` and `inference_mode` do not apply inside other threads."""
    regions = regions_for("labels", (8, 4, 12), rng)
    f = torch.randn(2, 3, 8, 4, 12, generator=rng, requires_grad=True)
    a = torch.randn(2, regions.count, 3, generator=rng, requires_grad=True)
    values = []
    for threads in (1, 2):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        with mode():
            loss = (regions.project(a, f) + regions.spread(regions.sums(f), f.shape[2:]).sum(dim=1)).square().sum()
            gradients = torch.autograd.grad(loss, (a, f), create_graph=True) if loss.requires_grad else ()
        values.append([loss.detach(), *gradients])
    assert len(values[0]) == (3 if mode is torch.enable_grad else 1)
    assert all(torch.equal(one, two) for one, two in zip(*values, strict=True))


@pytest.mark.parametrize("value", [0.1, 3.3])
def test_a_region_of_a_whole_patch_keeps_its_digits(value):
    """Background only: 2 million values, whose sum float32 cannot hold exactly."""
    regions = label_regions(torch.zeros(1, 1, 128, 128, 128), 2)
    f = torch.full((1, 1, 128, 128, 128), value, requires_grad=True)
    vectors, _ = region_vectors(f, regions)
    assert vectors[0, 0, 0].item() == pytest.approx(value, rel=1e-5)
    a = torch.ones(1, 2, 1, requires_grad=True)
    (of_a,) = torch.autograd.grad(regions.project(a, f).sum(), a)
    assert of_a[0, 0, 0].item() == pytest.approx(value * 128**3, rel=1e-5)


def test_what_does_not_fit_the_cells_is_refused(way):
    cells = regions_module.grid_sums(torch.zeros(2, 8, 8, dtype=torch.int32), 3, (8, 8))
    f, a = torch.ones(2, 4, 8, 8), torch.ones(2, 3, 4)
    for features in (torch.ones(2, 4, 4, 4), torch.ones(1, 4, 8, 8), torch.ones(2, 4, 8, 8, 1)):
        with pytest.raises(ValueError, match=r"expected features \(B, C, \*S\) of B 2, S \(8, 8\), got"):
            region_sums(features, cells)
        with pytest.raises(ValueError, match="expected features"):
            project(a, features, cells)
    for values in (torch.ones(2, 2, 4), torch.ones(1, 3, 4)):
        with pytest.raises(ValueError, match=r"expected values \(B, U, C\) of B 2, U 3, got"):
            spread(values, cells)
        with pytest.raises(ValueError, match="expected values"):
            project(values, f, cells)
    with pytest.raises(ValueError, match="expected values of 4 channels like the features, got 5"):
        project(torch.ones(2, 3, 5), f, cells)


def test_features_that_are_a_transposed_view(way, rng):
    """Their blocks are copies, so a gradient must not be written into one."""
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
def test_mass_and_inside(kind, factor, way, rng):
    regions = regions_for(kind, (8, 12), rng)
    size = (8 // factor, 12 // factor)
    dense = regions.dense().double().numpy()
    np.testing.assert_allclose(regions.mass(size), reference.area_average(dense, factor).sum(axis=(2, 3)), rtol=1e-6)
    in_any = reference.area_average(dense.max(axis=1, keepdims=True), factor)[:, 0]
    np.testing.assert_allclose(regions.inside(size), in_any, rtol=1e-6)


def test_more_regions_than_bits_of_a_table(rng, monkeypatch):
    targets = (torch.rand((2, 5, 4, 4), generator=rng) > 0.5).float()
    expected = overlapping_regions(targets, has_ignore=True)
    monkeypatch.setattr("nnunetv2_kd.regions.membership.MOST_BITS", 3)
    regions = overlapping_regions(targets, has_ignore=True)
    assert len(regions.table) < len(expected.table)
    assert torch.equal(regions.dense(), expected.dense())


def test_every_class_in_one_block(way, rng):
    """300 classes of noise: more than a byte can count."""
    regions = label_regions(torch.randint(0, 300, (1, 1, 64, 64), generator=rng), 300)
    f = torch.randn(1, 2, 64, 64, generator=rng)
    np.testing.assert_allclose(regions.sums(f), dense_sums(f, regions.dense(), 1), rtol=1e-4, atol=1e-5)


def test_channels_last_features_are_summed_alike(way, rng):
    regions = regions_for("labels", (8, 12), rng)
    f = torch.randn(2, 3, 8, 12, generator=rng)
    last = f.to(memory_format=torch.channels_last)
    np.testing.assert_allclose(regions.sums(last), regions.sums(f), rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32(dtype, way, rng):
    regions = label_regions(torch.zeros(1, 1, 64, 64), 2)
    f = (100 + torch.rand(1, 2, 64, 64, generator=rng)).to(dtype).requires_grad_()
    vectors, _ = region_vectors(f, regions)
    assert vectors.dtype == torch.float32
    np.testing.assert_allclose(vectors[0, 0].detach(), f.detach().double().mean(dim=(0, 2, 3)), rtol=1e-5)
    vectors.sum().backward()
    assert f.grad.dtype == dtype


def test_a_label_that_is_none_of_the_classes_is_refused():
    for label in (-1, 3):
        with pytest.raises(ValueError, match=r"expected labels in \[0, number of classes\), found another"):
            label_regions(torch.full((1, 1, 4, 4), label), 2).mass()


def test_a_grid_that_does_not_divide_is_refused():
    regions = label_regions(torch.zeros(1, 1, 8, 8), 2)
    with pytest.raises(ValueError, match=r"divides the regions' grid \(8, 8\), got \(4, 3\)"):
        regions.sums(torch.zeros(1, 2, 4, 3))
    with pytest.raises(ValueError, match=r"got \(16, 16\)"):
        regions.inside((16, 16))
    with pytest.raises(ValueError, match=r"got \(8,\)"):
        regions.mass((8,))


def test_codes_have_one_type(rng):
    """numba compiles for every type that it is called with, and keeps the result."""
    given_types = (torch.uint8, torch.int16, torch.int32, torch.long, torch.float32)
    made = [label_regions(torch.randint(0, 3, (1, 1, 4, 4), generator=rng).to(t), 3) for t in given_types]
    made += [overlapping_regions(torch.randint(0, 2, (1, r, 4, 4), generator=rng)) for r in (2, 9, 62)]
    for regions in made:
        assert regions.codes.dtype == torch.int32
        regions.mass((2, 2))
    assert len(cpu_kernels.find_runs.signatures) == 1


def test_the_cells_of_a_grid_are_made_once(monkeypatch):
    made = []
    monkeypatch.setattr(regions_module, "grid_sums", lambda *a: made.append(a[2]) or grid_sums(*a))
    regions = Regions(torch.zeros(1, 4, 4, dtype=torch.int32), torch.eye(2))
    for size in ((4, 4), (2, 2), (4, 4)):
        regions.sums(torch.ones(1, 1, *size))
    assert made == [(4, 4), (2, 2)]
