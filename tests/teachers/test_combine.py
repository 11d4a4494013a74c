"""Several teachers as one."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nnunetv2_kd.regions import region_graph
from nnunetv2_kd.regions.membership import label_regions, overlapping_regions
from nnunetv2_kd.regions.vectors import region_cosines
from nnunetv2_kd.teachers.combine import as_logits, mean_affinity, mix, region_weights, voxel_weights
from tests.methods import reference_rivals

SPATIAL = [(4, 3), (3, 2, 4)]
RULES = ["mean", "confidence", "region"]
BASE = [1.0, 2.0, 5.0]


def teachers(spatial, rng, sigmoid, count=3, scale=2.0):
    z = scale * torch.randn((count, 2, 3, *spatial), generator=rng)
    return list(z.sigmoid() if sigmoid else z.softmax(dim=2))


def membership_of(spatial, rng, sigmoid):
    """With ignored voxels; the regions overlap if the heads are regions."""
    if sigmoid:
        return overlapping_regions((torch.rand((2, 4, *spatial), generator=rng) > 0.6).float(), has_ignore=True).dense()
    return label_regions(torch.randint(0, 4, (2, 1, *spatial), generator=rng), 3, ignore_label=3).dense()


@pytest.mark.parametrize("spatial", SPATIAL)
@pytest.mark.parametrize("sigmoid", [False, True])
@pytest.mark.parametrize("rule", RULES)
def test_voxel_weights_are_the_reference(rule, sigmoid, spatial, rng):
    p, m = teachers(spatial, rng, sigmoid), membership_of(spatial, rng, sigmoid)
    weights = voxel_weights(rule, p, m, torch.tensor(BASE), 0.7, sigmoid)
    expected = reference_rivals.voxel_weights(rule, [q.numpy() for q in p], m.numpy(), BASE, 0.7, sigmoid)
    assert weights.shape == (3, 2, 1, *spatial)
    np.testing.assert_allclose(weights[:, :, 0], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("sigmoid", [False, True])
@pytest.mark.parametrize("rule", RULES)
def test_ignored_voxels_take_the_base_weights_and_change_nothing(rule, sigmoid, rng):
    p, m = teachers((4, 4), rng, sigmoid), membership_of((4, 4), rng, sigmoid)
    ignored = m.sum(dim=1, keepdim=True) == 0
    assert ignored.any()
    weights = voxel_weights(rule, p, m, torch.tensor(BASE), 1.0, sigmoid)
    at_ignored = weights[:, :, 0][:, ignored[:, 0]]
    np.testing.assert_allclose(at_ignored, np.repeat(np.array(BASE)[:, None] / 8, at_ignored.shape[1], 1), rtol=1e-5)
    changed = [torch.where(ignored, torch.rand(q.shape, generator=rng), q) for q in p]
    torch.testing.assert_close(voxel_weights(rule, changed, m, torch.tensor(BASE), 1.0, sigmoid), weights)


def test_confidence_closed_form():
    """The right class at 0.8 and at 0.2, tau 1: weights as the probabilities; tau 1/2: as their squares."""
    p = [torch.tensor([0.8, 0.2]).view(1, 2, 1, 1), torch.tensor([0.2, 0.8]).view(1, 2, 1, 1)]
    m, base = torch.tensor([1.0, 0.0]).view(1, 2, 1, 1), torch.ones(2)
    assert voxel_weights("confidence", p, m, base, 1.0).flatten().tolist() == pytest.approx([0.8, 0.2])
    assert voxel_weights("confidence", p, m, base, 0.5).flatten().tolist() == pytest.approx([16 / 17, 1 / 17])
    assert voxel_weights("confidence", p, m, torch.tensor([1.0, 4.0])).flatten().tolist() == pytest.approx([0.5, 0.5])


def test_region_rule_hears_each_teacher_on_what_it_knows():
    """One teacher is right about class 1 and never predicts class 2, the other the reverse; both
    know the background."""
    labels = torch.tensor([0, 0, 1, 2]).view(1, 1, 2, 2)
    m = label_regions(labels, 3).dense()
    knows_1 = label_regions(torch.where(labels == 2, 0, labels), 3).dense()
    knows_2 = label_regions(torch.where(labels == 1, 0, labels), 3).dense()
    weights = voxel_weights("region", [knows_1, knows_2], m, torch.ones(2))[:, 0, 0].flatten(1)
    assert weights.T.tolist() == [[0.5, 0.5], [0.5, 0.5], [1, 0], [0, 1]]


def test_a_region_that_no_teacher_sees_takes_the_base_weights():
    m = label_regions(torch.ones(1, 1, 2, 2), 2).dense()
    blind = label_regions(torch.zeros(1, 1, 2, 2), 2).dense()
    weights = voxel_weights("region", [blind, blind], m, torch.tensor([1.0, 3.0]))
    assert weights[:, 0, 0, 0, 0].tolist() == [0.25, 0.75]


@pytest.mark.parametrize("rule", RULES)
def test_a_teacher_of_weight_zero_is_not_heard(rule, rng):
    p, m = teachers((4, 4), rng, False), membership_of((4, 4), rng, False)
    weights = voxel_weights(rule, p, m, torch.tensor([1.0, 0.0, 1.0]))
    assert weights[1].abs().max() == 0
    torch.testing.assert_close(weights[[0, 2]], voxel_weights(rule, [p[0], p[2]], m, torch.ones(2)))


def test_region_weights(rng):
    m = label_regions(torch.tensor([0, 0, 1, 1]).view(1, 1, 2, 2), 3).dense()
    weights = torch.tensor([[0.2, 0.4, 1.0, 0.5], [0.8, 0.6, 0.0, 0.5]]).view(2, 1, 1, 2, 2)
    regions = region_weights(weights, m, torch.tensor([1.0, 3.0]))
    np.testing.assert_allclose(regions[:, 0], [[0.3, 0.75, 0.25], [0.7, 0.25, 0.75]], rtol=1e-6)
    finer = m.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    torch.testing.assert_close(region_weights(weights, finer, torch.tensor([1.0, 3.0])), regions)


@pytest.mark.parametrize("sigmoid", [False, True])
def test_mix_and_back_to_logits(sigmoid, rng):
    p, m = teachers((4, 4), rng, sigmoid), membership_of((4, 4), rng, sigmoid)
    weights = voxel_weights("confidence", p, m, torch.tensor(BASE), 1.0, sigmoid)
    mixed = mix(p, weights)
    np.testing.assert_allclose(mixed, np.einsum("mbv...,mbk...->bk...", weights, torch.stack(p)), rtol=1e-5)
    z = as_logits(mixed, sigmoid)
    torch.testing.assert_close(z.sigmoid() if sigmoid else z.softmax(dim=1), mixed, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("sigmoid", [False, True])
def test_logits_of_certainty_are_finite(sigmoid):
    p = torch.tensor([1.0, 0.0]).view(1, 2, 1, 1)
    z = as_logits(p, sigmoid)
    assert torch.isfinite(z).all()
    torch.testing.assert_close(z.sigmoid() if sigmoid else z.softmax(dim=1), p)


def test_mean_affinity(rng):
    """Teachers of different width. Each pair is weighted by the mean of its regions' weights, so the
    diagonal stays 1."""
    m = label_regions(torch.randint(0, 3, (2, 1, 4, 4), generator=rng), 3)
    matrices = [region_cosines(torch.randn(2, c, 4, 4, generator=rng), m)[0] for c in (2, 5)]
    weights = torch.rand(2, 2, 3, generator=rng)
    weights /= weights.sum(dim=0)
    mean = mean_affinity(matrices, weights)
    for b, i, j in np.ndindex(2, 3, 3):
        expected = sum(float((w[b, i] + w[b, j]) / 2 * a[b, i, j]) for w, a in zip(weights, matrices, strict=True))
        assert float(mean[b, i, j]) == pytest.approx(expected, rel=1e-4, abs=1e-6)
    np.testing.assert_allclose(mean.diagonal(dim1=1, dim2=2), 1, rtol=1e-5)


def test_graphs_mix_as_one_sample(rng):
    m = label_regions(torch.randint(0, 3, (2, 1, 4, 4), generator=rng), 3)
    edges = [region_graph(torch.randn(2, c, 4, 4, generator=rng), m)[0] for c in (2, 5)]
    only_first = torch.stack((torch.ones(2, 3), torch.zeros(2, 3)))
    mean = mean_affinity([e.unsqueeze(0) for e in edges], only_first.flatten(1).unsqueeze(1))
    torch.testing.assert_close(mean[0], edges[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("rule", RULES)
def test_half_precision_and_no_gradient(dtype, rule, rng):
    p, m = [q.to(dtype).requires_grad_() for q in teachers((4, 4), rng, False)], membership_of((4, 4), rng, False)
    weights = voxel_weights(rule, p, m, torch.tensor(BASE))
    mixed = mix(p, weights)
    assert weights.dtype == mixed.dtype == torch.float32
    assert not weights.requires_grad
    assert not mixed.requires_grad
    full = voxel_weights(rule, [q.detach().float() for q in p], m, torch.tensor(BASE))
    torch.testing.assert_close(weights, full)


@pytest.mark.parametrize("rule", ["confidence", "region"])
@pytest.mark.parametrize("sigmoid", [False, True])
def test_teachers_that_are_certain_and_wrong(rule, sigmoid):
    m = label_regions(torch.zeros(1, 1, 2, 2), 3).dense()
    p = [torch.tensor([0.0, 1.0, 0.0])[sigmoid:].view(1, -1, 1, 1).expand(1, -1, 2, 2)] * 2
    weights = voxel_weights(rule, p, m, torch.ones(2), 0.01, sigmoid)
    np.testing.assert_allclose(weights, 0.5, rtol=1e-5)


def test_what_cannot_be_is_refused(rng):
    p, m, base = teachers((4, 4), rng, False), membership_of((4, 4), rng, False), torch.ones(3)
    with pytest.raises(ValueError, match="mean, confidence, region, got 'median'"):
        voxel_weights("median", p, m, base)
    with pytest.raises(ValueError, match="tau above 0, got 0"):
        voxel_weights("mean", p, m, base, tau=0)
    with pytest.raises(ValueError, match=r"each of 3 teachers, got \(2,\)"):
        voxel_weights("mean", p, m, base[:2])
    with pytest.raises(ValueError, match="sum above 0, got"):
        voxel_weights("mean", p, m, 0 * base)
    with pytest.raises(ValueError, match="at least 0"):
        voxel_weights("mean", p, m, torch.tensor([2.0, -1.0, 1.0]))
    with pytest.raises(ValueError, match=r"\(2, 3, 4, 4\) and \(2, 2, 4, 4\)"):
        voxel_weights("region", p, m[:, :2], base)
    with pytest.raises(ValueError, match=r"\(2, 3, 4, 4\) and \(2, 3, 4, 4\)"):  # sigmoid: the background is missing
        voxel_weights("region", p, m, base, sigmoid=True)
    with pytest.raises(ValueError, match=r"\(2, 3, 4, 4\) and \(1, 3, 4, 4\)"):
        voxel_weights("mean", [p[0], p[1][:1]], m, torch.ones(2))
    weights = voxel_weights("mean", p, m, base)
    with pytest.raises(ValueError, match=r"\(3, 2, 1, 2, 4\) and \(2, 3, 4, 4\)"):
        mix(p, weights[..., :2, :])
    with pytest.raises(ValueError, match=r"\(3, 2, 1, 4, 4\) and \(1, 3, 4, 4\)"):
        region_weights(weights, m[:1], base)
    with pytest.raises(ValueError, match=r"\(2,\) and \(3, 2, 1, 4, 4\)"):
        region_weights(weights, m, base[:2])
    with pytest.raises(ValueError, match=r"\(2, 1, 3\) and \(2, 3, 3\)"):
        mean_affinity([torch.zeros(2, 3, 3)] * 2, torch.ones(2, 1, 3))


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    scale=st.floats(0.01, 50),
    tau=st.floats(0.01, 10),
    rule=st.sampled_from(RULES),
    sigmoid=st.booleans(),
)
def test_weights_sum_to_one(seed, scale, tau, rule, sigmoid):
    generator = torch.Generator().manual_seed(seed)
    p, m = teachers((3, 3), generator, sigmoid, scale=scale), membership_of((3, 3), generator, sigmoid)
    weights = voxel_weights(rule, p, m, torch.tensor(BASE), tau, sigmoid)
    assert float(weights.min()) >= 0
    np.testing.assert_allclose(weights.sum(dim=0), 1, rtol=1e-4)
    np.testing.assert_allclose(region_weights(weights, m, torch.tensor(BASE)).sum(dim=0), 1, rtol=1e-4)
    assert 0 <= float(mix(p, weights).min()) <= float(mix(p, weights).max()) <= 1 + 1e-5
