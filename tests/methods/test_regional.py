"""Feature filtering, the region graph, and intra-class variation."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nnunetv2_kd.methods.feature_filtering import _ActiveChannels, activation_map, feature_filtering
from nnunetv2_kd.methods.intra_class_variation import intra_class_variation
from nnunetv2_kd.methods.region_affinity import affinity_difference
from nnunetv2_kd.methods.region_graph import graph_difference
from nnunetv2_kd.regions.membership import Regions, label_regions, overlapping_regions
from nnunetv2_kd.tensors import blockwise
from tests.methods import reference, reference_rivals
from tests.methods.given import region_graph_loss, regions_of

SPATIAL = [(8, 4), (4, 8, 4)]
TERMS = [feature_filtering, region_graph_loss, intra_class_variation]


def features(channels, spatial, rng, batch=2):
    return torch.randn((batch, channels, *spatial), generator=rng)


def membership_of(spatial, rng, classes=3, count=4, batch=2):
    """The last class is absent; the one after it is the ignore label."""
    labels = torch.randint(0, classes + 1, (batch, 1, *spatial), generator=rng)
    return label_regions(torch.where(labels == classes, count, labels), count, ignore_label=count)


def all_labelled(spatial, rng):
    return label_regions(torch.randint(0, 3, (2, 1, *spatial), generator=rng), 4)


@pytest.mark.parametrize("spatial", SPATIAL)
@pytest.mark.parametrize("factor", [1, 2])
def test_feature_filtering_is_the_reference(spatial, factor, rng):
    """Teacher at full resolution, student at a coarser grid, ignored voxels, an absent class."""
    f_s, f_t = features(3, tuple(s // factor for s in spatial), rng), features(6, spatial, rng)
    m = membership_of(spatial, rng)
    fine = m.dense().numpy()
    expected = reference_rivals.feature_filtering(
        f_s.numpy(), f_t.numpy(), reference.area_average(fine, factor), fine, 1.5
    )
    assert float(feature_filtering(f_s, f_t, m, gamma=1.5)) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("spatial", SPATIAL)
@pytest.mark.parametrize("factor", [1, 2])
def test_intra_class_variation_is_the_reference(spatial, factor, rng):
    f_s, f_t = features(3, tuple(s // factor for s in spatial), rng), features(6, spatial, rng)
    m = membership_of(spatial, rng) if factor == 1 else all_labelled(spatial, rng)
    fine = m.dense().numpy()
    expected = reference_rivals.intra_class_variation(
        f_s.numpy(), f_t.numpy(), reference.area_average(fine, factor), fine
    )
    assert float(intra_class_variation(f_s, f_t, m)) == pytest.approx(expected, rel=1e-3)


def test_overlapping_regions(rng):
    targets = (torch.rand(2, 2, 4, 4, generator=rng) > 0.4).float()
    m = overlapping_regions(targets)
    assert m.dense().sum(dim=1).max() == 2
    f_s, f_t = features(3, (4, 4), rng), features(5, (4, 4), rng)
    numpy = (f_s.numpy(), f_t.numpy(), m.dense().numpy(), m.dense().numpy())
    assert float(region_graph_loss(f_s, f_t, m)) == pytest.approx(
        reference_rivals.region_graph_loss(*numpy, 3), rel=1e-3
    )
    assert float(intra_class_variation(f_s, f_t, m)) == pytest.approx(
        reference_rivals.intra_class_variation(*numpy), rel=1e-3
    )


@pytest.mark.parametrize("spatial", SPATIAL)
@pytest.mark.parametrize("layout", ["first", "last", "transposed"])
def test_gradient_of_an_activation_map_is_autograd_s(spatial, layout, rng, monkeypatch):
    """The formula written out in float64; a channel at a time, ignored voxels, a sample with nothing else."""
    monkeypatch.setitem(blockwise.VALUES_AT_ONCE, "cpu", 1)
    f = features(5, spatial, rng, batch=3)
    if layout == "last":
        f = f.to(memory_format=torch.channels_last if len(spatial) == 2 else torch.channels_last_3d)
    elif layout == "transposed":
        f = f.transpose(2, 3).contiguous().transpose(2, 3)
    inside = (torch.rand((3, *spatial), generator=rng) > 0.3).float()
    inside[2] = 0
    weights = torch.randn(inside.shape, generator=rng)
    own, plain = f.detach().requires_grad_(), f.detach().double().requires_grad_()
    (weights * activation_map(own, inside)).sum().backward()

    active, counted = plain.relu().flatten(2), inside.flatten(1).double()
    total = counted.sum(dim=1, keepdim=True).clamp(min=1)
    pooled = (active * counted.unsqueeze(1)).sum(dim=2) / total
    maps = (pooled.softmax(dim=1).unsqueeze(2) * active).sum(dim=1)
    centred = maps - (counted * maps).sum(dim=1, keepdim=True) / total
    variance = (counted * centred.square()).sum(dim=1, keepdim=True) / total
    (weights.flatten(1) * centred / (variance + 1e-5).sqrt() * (counted > 0)).sum().backward()
    np.testing.assert_allclose(own.grad, plain.grad, rtol=1e-3, atol=1e-5)


def test_gradient_of_the_channels_weights(rng):
    """Standardised maps have hardly any such gradient."""
    f, counted = features(4, (3, 5), rng), torch.rand(2, 3, 5, generator=rng)
    weights = torch.randn(2, 3, 5, generator=rng)
    own, plain = f.clone().requires_grad_(), f.double().requires_grad_()
    (weights * _ActiveChannels.apply(own, counted)).sum().backward()
    active = plain.relu()
    pooled = (active * counted.unsqueeze(1)).sum(dim=(2, 3)) / counted.sum(dim=(1, 2)).unsqueeze(1)
    (weights * torch.einsum("bc,bcyx->byx", pooled.softmax(dim=1), active)).sum().backward()
    np.testing.assert_allclose(own.grad, plain.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("size", [(3, 3), (16, 16)])
def test_a_student_at_a_grid_that_does_not_divide_is_refused(size, rng):
    with pytest.raises(ValueError, match=r"divides the regions' grid \(8, 8\)"):
        feature_filtering(features(3, size, rng), features(3, (8, 8), rng), all_labelled((8, 8), rng))


def test_activation_map_closed_form():
    """One channel, two voxels on and two off (negative): half the voxels one deviation up, half one down."""
    f = torch.tensor([2.0, 2.0, -1.0, -7.0]).view(1, 1, 2, 2)
    assert activation_map(f).flatten().tolist() == pytest.approx([1, 1, -1, -1], rel=1e-4)
    inside = torch.tensor([0.0, 1.0, 1.0, 0.0]).view(1, 2, 2)
    assert activation_map(f, inside).flatten().tolist() == pytest.approx([0, 1, -1, 0], rel=1e-4)


def test_filter_listens_where_the_teacher_is_decided():
    """The student makes the same error at a voxel where the teacher is certain and at one where it is not."""
    teacher = torch.tensor([3.0, 1.0, 1.0, 1.0, 1.0, 0.5]).view(1, 1, 1, 6)
    m = regions_of(torch.ones(1, 1, 1, 6))
    a_t = activation_map(teacher).flatten()
    student = torch.tensor([2.6, 1.0, 1.0, 1.0, 1.0, 0.9]).view(1, 1, 1, 6)
    squares = (activation_map(student).flatten() - a_t).square()
    u = torch.exp(3 * (2 * a_t.sigmoid() - 1).abs())
    assert u[0] > 2 * u[1]
    expected = float((u * squares).sum() / u.sum())
    assert float(feature_filtering(student, teacher, m, gamma=3.0)) == pytest.approx(expected, rel=1e-4)


def test_filter_weighs_a_small_region_like_a_large_one(rng):
    f_s, f_t = features(2, (8, 8), rng, 1), features(2, (8, 8), rng, 1)
    labels = torch.zeros(1, 1, 8, 8)
    labels[..., 0, 0] = 1
    m = label_regions(labels, 2)
    squares = (activation_map(f_s) - activation_map(f_t)).square()[0]
    u = (2 * activation_map(f_t).sigmoid() - 1).abs().exp()[0]
    background = (u * squares * m.dense()[0, 0]).sum() / (u * m.dense()[0, 0]).sum()
    assert float(feature_filtering(f_s, f_t, m)) == pytest.approx(float((squares[0, 0] + background) / 2), rel=1e-4)


def test_absent_nodes_take_part_in_nothing(rng):
    f_s, f_t = features(3, (4, 4), rng), features(3, (4, 4), rng)
    m = membership_of((4, 4), rng, count=3)
    more = Regions(m.codes, torch.cat((m.table, torch.zeros(len(m.table), 5)), dim=1))
    for term in TERMS:
        assert float(term(f_s, f_t, more)) == pytest.approx(float(term(f_s, f_t, m)), rel=1e-5)


def test_variation_closed_form():
    """One region of two voxels. Student's at right angles, so 45 degrees off their mean; teacher's parallel."""
    student = torch.eye(2).view(1, 2, 1, 2)
    teacher = torch.tensor([1.0, 5.0]).view(1, 1, 1, 2)
    expected = (2**-0.5 - 1) ** 2
    both = regions_of(torch.ones(1, 1, 1, 2))
    assert float(intra_class_variation(student, teacher, both)) == pytest.approx(expected, rel=1e-5)


def test_voxels_of_no_region_do_not_pull_their_neighbours(rng):
    """A part of the patch is ignored, with its border inside the student's coarser voxels. The features are the same
    everywhere else."""
    labelled = torch.ones(1, 1, 8, 8)
    labelled[..., :3] = 0
    m = regions_of(labelled)
    f_s, f_t = torch.ones(1, 2, 4, 4), torch.ones(1, 3, 8, 8)
    f_s[..., :1], f_t[..., :3] = torch.randn(1, 2, 4, 1, generator=rng), torch.randn(1, 3, 8, 3, generator=rng)
    assert float(intra_class_variation(f_s, f_t, m)) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("spatial", SPATIAL)
@pytest.mark.parametrize("term", TERMS)
def test_zero_when_identical(term, spatial, rng):
    f = features(4, spatial, rng)
    assert float(term(f, f.clone(), membership_of(spatial, rng))) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("term", TERMS)
def test_gradient_to_the_student_only(term, rng):
    f_s, f_t = features(3, (4, 4), rng).requires_grad_(), features(5, (8, 8), rng).requires_grad_()
    term(f_s, f_t, all_labelled((8, 8), rng)).backward()
    assert f_s.grad.abs().sum() > 0
    assert f_t.grad is None


@pytest.mark.parametrize("term", TERMS)
def test_ignored_voxels_do_not_count(term, rng):
    f_s, f_t = features(3, (4, 4), rng), features(3, (4, 4), rng)
    m = membership_of((4, 4), rng)
    ignored = m.dense().sum(dim=1, keepdim=True) == 0
    assert ignored.any()
    expected = float(term(f_s, f_t, m))
    assert expected > 0
    assert float(term(f_s + 7 * ignored, f_t - 5 * ignored, m)) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("term", TERMS)
def test_all_ignored_is_zero_and_not_nan(term, rng):
    f_s = features(3, (4, 4), rng).requires_grad_()
    loss = term(f_s, features(3, (4, 4), rng), regions_of(torch.zeros(2, 3, 4, 4)))
    loss.backward()
    assert float(loss.detach()) == 0
    assert f_s.grad.abs().sum() == 0


@pytest.mark.parametrize("term", TERMS)
def test_dead_features_have_finite_gradients(term, rng):
    f_s = torch.zeros(2, 3, 4, 4, requires_grad=True)
    loss = term(f_s, features(3, (4, 4), rng), all_labelled((4, 4), rng))
    loss.backward()
    assert torch.isfinite(loss)
    assert f_s.grad.abs().max() < 1e4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("term", TERMS)
def test_half_precision(term, dtype, rng):
    f_s, f_t = features(4, (4, 4), rng).to(dtype), features(4, (4, 4), rng).to(dtype)
    m = all_labelled((4, 4), rng)
    half, full = f_s.clone().requires_grad_(), f_s.float().requires_grad_()
    loss, expected = term(half, f_t, m), term(full, f_t.float(), m)
    loss.backward()
    expected.backward()
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(float(expected), rel=1e-4)
    np.testing.assert_allclose(half.grad.float(), full.grad, rtol=0.02, atol=1e-4)


@pytest.mark.parametrize("term", TERMS)
def test_shapes_must_agree(term):
    f, m = torch.zeros(2, 3, 4, 4), torch.zeros(2, 2, 4, 4)
    with pytest.raises(ValueError, match=r"\(1, 3, 4, 4\) and \(2, "):
        term(f[:1], f, regions_of(m))
    with pytest.raises(ValueError, match=r"\(2, 3, 4, 4\) and \(1, 1, 4, 4\)"):
        term(f, f, regions_of(m[:1]))


def test_wrong_options_and_edges():
    f, m, e = torch.zeros(1, 3, 4, 4), regions_of(torch.zeros(1, 2, 4, 4)), torch.zeros(2, 2)
    with pytest.raises(ValueError, match="gamma above 0, got 0"):
        feature_filtering(f, f, m, gamma=0)
    with pytest.raises(ValueError, match="at least 1 hop, got 0"):
        region_graph_loss(f, f, m, hops=0)
    with pytest.raises(ValueError, match=r"\(2, 2\) and \(3, 3\)"):
        graph_difference(e, torch.zeros(3, 3), torch.ones(2).bool())
    with pytest.raises(ValueError, match=r"\(1,\) and \(2, 2\)"):
        graph_difference(e, e, torch.ones(1).bool())
    with pytest.raises(ValueError, match=r"\(2, 2\) and \(1, 2, 2\)"):
        affinity_difference(e[None], e[None], torch.ones(2, 2).bool())


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), scale=st.floats(1e-3, 1e3), classes=st.integers(1, 4))
def test_ranges(seed, scale, classes):
    generator = torch.Generator().manual_seed(seed)
    f_s, f_t = scale * features(3, (4, 4), generator), features(3, (4, 4), generator)
    m = membership_of((4, 4), generator, classes=classes, count=5)
    for term, upper in zip(TERMS, (float("inf"), float("inf"), 4), strict=True):
        assert 0 <= float(term(f_s, f_t, m)) <= upper
