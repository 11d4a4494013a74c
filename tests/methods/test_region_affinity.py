"""Importance maps, region affinity, and the regions that they use."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nnunetv2_kd.methods.importance_map import importance_map, importance_map_loss
from nnunetv2_kd.regions import region_vectors
from nnunetv2_kd.regions.membership import at_grid, label_regions, overlapping_regions
from nnunetv2_kd.regions.vectors import region_cosines
from tests.methods import reference
from tests.methods.given import region_affinity

SPATIAL = [(8, 4), (4, 8, 4)]


def features(channels, spatial, rng):
    return torch.randn((2, channels, *spatial), generator=rng)


def labels(spatial, classes, rng):
    return torch.randint(0, classes, (2, 1, *spatial), generator=rng)


@pytest.mark.parametrize("spatial", SPATIAL)
def test_importance_map_is_the_reference(spatial, rng):
    f_s, f_t = features(3, spatial, rng), features(5, spatial, rng)
    expected = reference.importance_map_loss(f_s.numpy(), f_t.numpy())
    assert float(importance_map_loss(f_s, f_t)) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("spatial", SPATIAL)
@pytest.mark.parametrize("factor", [1, 2])
def test_region_affinity_is_the_reference(spatial, factor, rng):
    """Teacher at full resolution, student at a coarser grid, five classes of which one is absent."""
    f_s, f_t = features(3, tuple(s // factor for s in spatial), rng), features(6, spatial, rng)
    regions = label_regions(labels(spatial, 4, rng), 5)
    fine = regions.dense().numpy()
    expected = reference.region_affinity(f_s.numpy(), f_t.numpy(), reference.area_average(fine, factor), fine)
    assert float(region_affinity(f_s, f_t, regions)) == pytest.approx(expected, rel=1e-3)


def test_region_affinity_of_two_regions_closed_form():
    """Student's regions orthogonal (cosine 0), teacher's the same (cosine 1): (0 - 1)^2."""
    regions = label_regions(torch.tensor([0, 1]).view(1, 1, 1, 2), 2)
    student = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).view(1, 2, 1, 2)
    teacher = torch.ones(1, 3, 1, 2)
    assert float(region_affinity(student, teacher, regions)) == pytest.approx(1)


def test_pair_errors_do_not_cancel():
    """One pair that is too similar does not make up for another that is as much too dissimilar."""
    regions = label_regions(torch.tensor([0, 1, 2]).view(1, 1, 1, 3), 3)
    angles_s, angles_t = torch.tensor([0.0, 0.5, 2.0]), torch.tensor([0.0, 1.5, 2.0])

    def on_circle(angles):
        return torch.stack((angles.cos(), angles.sin())).view(1, 2, 1, 3)

    f_s, f_t = on_circle(angles_s), on_circle(angles_t)
    mean_s, mean_t = (region_cosines(f, regions)[0].mean() for f in (f_s, f_t))
    assert float(mean_s - mean_t) == pytest.approx(0, abs=1e-6)
    assert float(region_affinity(f_s, f_t, regions)) > 0.1


@pytest.mark.parametrize("spatial", SPATIAL)
def test_zero_when_identical(spatial, rng):
    f = features(4, spatial, rng)
    regions = label_regions(labels(spatial, 3, rng), 3)
    assert float(region_affinity(f, f.clone(), regions)) == pytest.approx(0, abs=1e-9)
    assert float(importance_map_loss(f, f.clone())) == pytest.approx(0, abs=1e-9)


def test_affinity_does_not_see_a_rotation_of_the_channels(rng):
    """Cosines between regions are all that is compared, so a teacher in another basis teaches the same."""
    f = features(4, (6, 6), rng)
    rotation, _ = torch.linalg.qr(torch.randn(4, 4, generator=rng))
    rotated = torch.einsum("dc,bcxy->bdxy", rotation, f)
    assert float(region_affinity(f, 3 * rotated, label_regions(labels((6, 6), 3, rng), 3))) < 1e-9


def test_gradient_to_the_student_only(rng):
    f_s, f_t = features(3, (6, 6), rng).requires_grad_(), features(5, (6, 6), rng).requires_grad_()
    (region_affinity(f_s, f_t, label_regions(labels((6, 6), 3, rng), 3)) + importance_map_loss(f_s, f_t)).backward()
    assert f_s.grad.abs().sum() > 0
    assert f_t.grad is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype, rng):
    """F^4 of 300 is beyond float16; the terms compute in float32 and agree with themselves."""
    f_s = (300 * features(4, (6, 6), rng)).to(dtype).requires_grad_()
    f_t = (300 * features(4, (6, 6), rng)).to(dtype)
    regions = label_regions(labels((6, 6), 3, rng), 3)
    loss = region_affinity(f_s, f_t, regions) + importance_map_loss(f_s, f_t)
    loss.backward()
    expected = region_affinity(f_s.float(), f_t.float(), regions) + importance_map_loss(f_s.float(), f_t.float())
    assert float(loss) == pytest.approx(float(expected), rel=1e-3)
    assert torch.isfinite(f_s.grad).all()
    assert f_s.grad.abs().sum() > 0


def test_one_region_or_dead_features_give_zero_and_finite_gradients(rng):
    f_s = torch.zeros(2, 3, 4, 4, requires_grad=True)
    one_region = label_regions(torch.zeros(2, 1, 4, 4), 3)
    two_regions = label_regions(labels((4, 4), 2, rng), 3)
    f_t = features(3, (4, 4), rng)
    assert float(region_affinity(f_t, features(3, (4, 4), rng), one_region)) == 0
    (region_affinity(f_s, f_t, two_regions) + importance_map_loss(f_s, f_t)).backward()
    assert torch.isfinite(f_s.grad).all()


def test_importance_map_resizes_the_student(rng):
    f_t = features(2, (8, 8), rng)
    f_s = torch.nn.functional.avg_pool2d(f_t, 2)
    assert 0 < float(importance_map_loss(f_s, f_t)) < 2
    assert importance_map(f_t).flatten(1).norm(dim=1).tolist() == pytest.approx([1, 1])


def test_area_average_keeps_a_small_structure():
    """One voxel of 64 is an eighth of its cell; a nearest-neighbour average would lose or enlarge it."""
    one_voxel = torch.zeros(1, 1, 4, 4, 4, dtype=torch.long)
    one_voxel[0, 0, 1, 1, 1] = 1
    coarse = at_grid(label_regions(one_voxel, 2).dense(), (2, 2, 2))
    assert coarse[0, 1].sum().item() == pytest.approx(1 / 8)
    assert coarse[0, 1, 0, 0, 0].item() == pytest.approx(1 / 8)


def test_region_vectors_and_absent_regions(rng):
    f, y = features(3, (4, 4), rng), torch.randint(0, 2, (2, 1, 4, 4), generator=rng)
    vectors, present = region_vectors(f, label_regions(y, 3))
    for sample, expected in enumerate(reference.region_vectors(f.numpy(), label_regions(y, 3).dense().numpy())):
        assert present[sample].tolist() == [k in expected for k in range(3)]
        for k, vector in expected.items():
            np.testing.assert_allclose(vectors[sample, k].numpy(), vector, rtol=1e-4, atol=1e-6)
    assert vectors[:, 2].abs().sum() == 0


def test_ignored_voxels_belong_to_no_region():
    y = torch.tensor([0, 1, 2, 3]).view(1, 1, 2, 2)
    assert label_regions(y, 3, ignore_label=3).dense()[0].sum(dim=0).tolist() == [[1, 1], [1, 0]]
    regions = torch.tensor([[1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]]).view(1, 3, 2, 2)
    membership = overlapping_regions(regions, has_ignore=True).dense()[0]
    assert membership[0].tolist() == [[0, 0], [1, 0]]  # the complement of the union, less the ignored voxel
    assert membership[:, 1, 1].sum() == 0


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), scale=st.floats(1e-4, 1e4), classes=st.integers(1, 6))
def test_ranges(seed, scale, classes):
    generator = torch.Generator().manual_seed(seed)
    f_s, f_t = scale * features(3, (4, 4), generator), features(3, (4, 4), generator)
    regions = label_regions(labels((4, 4), classes, generator), 6)
    assert 0 <= float(region_affinity(f_s, f_t, regions)) <= 4
    assert 0 <= float(importance_map_loss(f_s, f_t)) <= 2
