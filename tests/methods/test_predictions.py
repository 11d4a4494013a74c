"""Channel-wise distillation, class affinity, soft Dice and Lovász-softmax: terms on one head's logits."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nnunetv2_kd.methods.channel_wise import channel_wise
from nnunetv2_kd.methods.class_affinity import class_affinity
from nnunetv2_kd.methods.lovasz import _descending, lovasz
from nnunetv2_kd.methods.region_kl import region_kl
from nnunetv2_kd.methods.soft_dice import soft_dice
from nnunetv2_kd.methods.voxel_kl import voxel_kl
from tests.methods import reference_rivals

SIZES = [(2, 3, 6, 4), (2, 3, 4, 3, 2)]


def cwd(student, teacher, valid=None, sigmoid=False):
    """`channel_wise` under the others' signature: it has no sigmoid form."""
    return channel_wise(student, teacher, valid)


TERMS = [cwd, class_affinity, soft_dice, lovasz]


def pair(size, rng, scale=2.0):
    return scale * torch.randn(size, generator=rng), scale * torch.randn(size, generator=rng)


def mask(size, rng):
    return torch.rand((size[0], 1, *size[2:]), generator=rng) > 0.3


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("sigmoid", [False, True])
@pytest.mark.parametrize("term", [class_affinity, soft_dice, lovasz])
def test_terms_are_the_reference(term, sigmoid, size, rng):
    z_s, z_t = pair(size, rng)
    expected = getattr(reference_rivals, term.__name__)
    for valid in (torch.ones(size[0], 1, *size[2:], dtype=torch.bool), mask(size, rng)):
        value = expected(z_s.numpy(), z_t.numpy(), valid.numpy(), sigmoid)
        assert float(term(z_s, z_t, valid, sigmoid)) == pytest.approx(value, rel=1e-4)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_channel_wise_is_the_reference(size, temperature, rng):
    z_s, z_t = pair(size, rng)
    valid = mask(size, rng)
    valid[1] = False  # a sample without valid voxels
    for keep in (torch.ones_like(valid), valid):
        expected = reference_rivals.channel_wise(z_s.numpy(), z_t.numpy(), keep.numpy(), temperature)
        assert float(channel_wise(z_s, z_t, keep, temperature)) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("term", TERMS)
@pytest.mark.parametrize("sigmoid", [False, True])
def test_no_mask_is_a_full_mask(term, sigmoid, rng):
    z_s, z_t = pair(SIZES[0], rng)
    full = torch.ones(2, 1, 6, 4, dtype=torch.bool)
    assert float(term(z_s, z_t, sigmoid=sigmoid)) == float(term(z_s, z_t, full, sigmoid))


def test_channel_wise_closed_form():
    """Teacher's channel all on one of two voxels, student's spread evenly: log 2, times T^2."""
    z_t = torch.tensor([500.0, -500.0]).view(1, 1, 1, 2)
    assert float(channel_wise(torch.zeros(1, 1, 1, 2), z_t, temperature=3.0)) == pytest.approx(9 * math.log(2))


def test_channel_wise_does_not_see_a_channel_wide_shift(rng):
    z_s, z_t = pair(SIZES[0], rng)
    shift = torch.tensor([1.0, -2.0, 3.0]).view(1, 3, 1, 1)
    assert float(channel_wise(z_s + shift, z_t)) == pytest.approx(float(channel_wise(z_s, z_t)), rel=1e-4)


def test_class_affinity_closed_form():
    """Two voxels, two classes. Teacher sure: G = I. Student undecided: every entry 1/2, so cosines of 1 / sqrt 2."""
    z_t = torch.tensor([[50.0, -50.0], [-50.0, 50.0]]).view(1, 2, 1, 2)
    assert float(class_affinity(torch.zeros(1, 2, 1, 2), z_t)) == pytest.approx(1 - 2**-0.5)


def test_class_affinity_has_the_gradients_of_the_authors_form(rng):
    z_s, z_t = pair(SIZES[0], rng)
    z_s.requires_grad_()
    (ours,) = torch.autograd.grad(class_affinity(z_s, z_t), z_s)
    p_s, p_t = z_s.softmax(dim=1).flatten(2), z_t.softmax(dim=1).flatten(2)
    g_s, g_t = p_s @ p_s.transpose(1, 2), p_t @ p_t.transpose(1, 2)
    (authors,) = torch.autograd.grad(-torch.cosine_similarity(g_s, g_t, dim=1).mean(), z_s)
    np.testing.assert_allclose(ours, authors, rtol=1e-3, atol=1e-6)


def test_class_affinity_leaves_out_a_class_without_trace(rng):
    """Logits so far apart that a softmax is exactly 0 everywhere: identical predictions still give 0."""
    z = torch.randn(1, 3, 4, 4, generator=rng)
    z[:, 2] = -3e4
    assert float(class_affinity(z, z.clone())) == pytest.approx(0, abs=1e-6)


def test_soft_dice_closed_form():
    """Teacher sure of class 1 at one of two voxels, student 1/2 at both: 2 * 1/2 / (1/2 + 1)."""
    z_t = torch.tensor([[-50.0, 50.0], [50.0, -50.0]]).view(1, 2, 1, 2)
    assert float(soft_dice(torch.zeros(1, 2, 1, 2), z_t)) == pytest.approx(1 - 2 / 3)


def test_soft_dice_hardly_sees_a_class_that_the_teacher_does_not(rng):
    z_s, z_t = pair((2, 3, 4, 4), rng)
    z_t[:, 2] = -20.0
    assert float(soft_dice(z_s, z_t)) == pytest.approx(
        reference_rivals.soft_dice(z_s.numpy(), z_t.numpy(), np.ones((2, 1, 4, 4), bool), False), rel=1e-4
    )
    only_background = torch.tensor([20.0, 0.0, 0.0]).view(1, 3, 1, 1).expand(2, 3, 4, 4)
    assert 0 < float(soft_dice(z_s, only_background)) < 1e-5


def test_lovasz_closed_form():
    """Student sure and wrong at one of three voxels: Jaccard losses 1/2 (class 0: 1 of 2 found, none too many) and 1/2
    (class 1: 1 found, 1 too many)."""
    z_t = torch.tensor([[9.0, 9.0, -9.0], [-9.0, -9.0, 9.0]]).view(1, 2, 1, 3)
    z_s = torch.tensor([[90.0, -90.0, -90.0], [-90.0, 90.0, 90.0]]).view(1, 2, 1, 3)
    assert float(lovasz(z_s, z_t)) == pytest.approx(0.5)
    assert float(lovasz(10 * z_t, z_t)) == pytest.approx(0, abs=1e-6)


@settings(max_examples=50, deadline=None)
@given(errors=st.lists(st.floats(0, 1, width=32), min_size=1, max_size=40))
def test_errors_are_sorted_with_the_largest_first(errors):
    values = torch.tensor([abs(error) for error in errors])
    order = _descending(values)
    assert sorted(order.tolist()) == list(range(len(errors)))
    assert values[order].tolist() == sorted(values.tolist(), reverse=True)


def test_lovasz_counts_present_classes_only(rng):
    z_s, z_t = pair((1, 3, 4, 4), rng)
    z_t[:, 2] = -50.0
    expected = reference_rivals.lovasz(z_s.numpy(), z_t.numpy(), np.ones((1, 1, 4, 4), bool), False)
    assert float(lovasz(z_s, z_t)) == pytest.approx(expected, rel=1e-4)
    assert float(lovasz(z_s, torch.full((1, 3, 4, 4), -1.0), sigmoid=True)) == 0


@pytest.mark.parametrize("term", [cwd, class_affinity, soft_dice])
@pytest.mark.parametrize("sigmoid", [False, True])
def test_zero_when_identical(term, sigmoid, rng):
    z = 3 * torch.randn(2, 3, 4, 4, generator=rng)
    assert float(term(z, z.clone(), sigmoid=sigmoid)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("sigmoid", [False, True])
def test_lovasz_is_not_zero_when_identical_and_unsure(sigmoid, rng):
    z = torch.randn(2, 3, 4, 4, generator=rng)
    assert float(lovasz(z, z.clone(), sigmoid=sigmoid)) > 0.1


@pytest.mark.parametrize("term", [voxel_kl, region_kl, *TERMS])
@pytest.mark.parametrize("sigmoid", [False, True])
def test_gradient_to_the_student_only(term, sigmoid, rng):
    z_s, z_t = (z.requires_grad_() for z in pair((2, 3, 4, 4), rng))
    term(z_s, z_t, sigmoid=sigmoid).backward()
    assert z_s.grad.abs().sum() > 0
    assert z_t.grad is None


@pytest.mark.parametrize("term", TERMS)
@pytest.mark.parametrize("sigmoid", [False, True])
def test_a_step_down_the_gradient_helps(term, sigmoid, rng):
    z_s, z_t = pair((2, 3, 4, 4), rng)
    z_s.requires_grad_()
    before = term(z_s, z_t, sigmoid=sigmoid)
    (gradient,) = torch.autograd.grad(before, z_s)
    after = term(z_s - 0.1 * gradient / gradient.norm(), z_t, sigmoid=sigmoid)
    assert float(after) < float(before)


@pytest.mark.parametrize("term", TERMS)
@pytest.mark.parametrize("sigmoid", [False, True])
def test_ignored_voxels_do_not_count(term, sigmoid, rng):
    z_s, z_t = pair((2, 3, 4, 4), rng)
    valid = mask((2, 3, 4, 4), rng)
    noise = 9 * torch.randn(2, 3, 4, 4, generator=rng) * ~valid
    expected = float(term(z_s, z_t, valid, sigmoid=sigmoid))
    assert float(term(z_s + noise, z_t - noise, valid, sigmoid=sigmoid)) == pytest.approx(expected, rel=1e-5)
    assert float(term(z_s, z_t, sigmoid=sigmoid)) != pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("term", TERMS)
@pytest.mark.parametrize("sigmoid", [False, True])
def test_all_ignored_is_zero_and_not_nan(term, sigmoid, rng):
    z_s, z_t = pair((2, 3, 4, 4), rng)
    z_s.requires_grad_()
    loss = term(z_s, z_t, torch.zeros(2, 1, 4, 4, dtype=torch.bool), sigmoid=sigmoid)
    loss.backward()
    assert float(loss.detach()) == 0
    assert z_s.grad.abs().sum() == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("term", TERMS)
@pytest.mark.parametrize("sigmoid", [False, True])
def test_half_precision(dtype, term, sigmoid, rng):
    z_s, z_t = (z.to(dtype) for z in pair((2, 3, 4, 4), rng))
    half, full = z_s.clone().requires_grad_(), z_s.float().requires_grad_()
    loss, expected = term(half, z_t, sigmoid=sigmoid), term(full, z_t.float(), sigmoid=sigmoid)
    loss.backward()
    expected.backward()
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(float(expected), rel=1e-4)
    np.testing.assert_allclose(half.grad.float(), full.grad, rtol=0.02, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("term", TERMS)
@pytest.mark.parametrize("sigmoid", [False, True])
def test_extreme_logits(dtype, term, sigmoid):
    z_s = torch.tensor([3e4, -3e4, 0.0]).to(dtype).view(1, 3, 1, 1).repeat(1, 1, 2, 2)
    z_s[..., 0] *= -1
    z_s.requires_grad_()
    loss = term(z_s, -z_s.detach(), sigmoid=sigmoid)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(z_s.grad).all()


@pytest.mark.parametrize("term", TERMS)
def test_shapes_must_agree(term):
    z = torch.zeros(2, 3, 4, 4)
    with pytest.raises(ValueError, match=r"\(2, 3, 4, 4\) and \(2, 2, 4, 4\)"):
        term(z, z[:, :2])
    with pytest.raises(ValueError, match=r"\(1, 1, 4, 4\) and \(2, 3, 4, 4\)"):
        term(z, z, torch.ones(1, 1, 4, 4, dtype=torch.bool))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), scale=st.floats(0.01, 30), sigmoid=st.booleans())
def test_ranges(seed, scale, sigmoid):
    generator = torch.Generator().manual_seed(seed)
    z_s, z_t = pair((2, 3, 3, 3), generator, scale)
    valid = mask((2, 3, 3, 3), generator)
    for term, upper in zip(TERMS, (float("inf"), 1, 1, 1), strict=True):
        assert -1e-5 <= float(term(z_s, z_t, valid, sigmoid=sigmoid)) <= upper + 1e-5
