"""Sums over adapted features, computed block by block, compared with sums over all of them at once."""

from unittest import mock

import pytest
import torch

from nnunetv2_kd.methods import recokd_sums
from nnunetv2_kd.tensors import blockwise

B, C, NARROW, V = 2, 5, 3, 23


def given(rng, dtype=torch.float64):
    def random(*size):
        return torch.randn(size, generator=rng, dtype=torch.float64).to(dtype)

    student, weight = random(B, NARROW, V).requires_grad_(), random(C, NARROW).requires_grad_()
    inside = (torch.rand(B, V, generator=rng) > 0.3).to(dtype)
    return student, weight, random(B, C, V), random(B, C).abs(), random(B, V).abs(), inside


def at_once(student, weight, teacher, channels, voxels, inside):
    adapted = weight @ student
    size, difference = adapted.abs(), adapted - teacher
    factor = channels.unsqueeze(2) * voxels.unsqueeze(1) + inside.unsqueeze(1)
    return (
        size.sum(dim=1),
        (size * inside.unsqueeze(1)).sum(dim=2),
        (factor * difference.square()).sum(dim=(1, 2)),
        (difference * inside.unsqueeze(1)).sum(dim=2),
    )


@pytest.fixture(params=[1, 7 * C, 2**17], ids=["voxel by voxel", "blocks that do not divide the grid", "one block"])
def blocks(request):
    with mock.patch.dict(blockwise.VALUES_AT_ONCE, cpu=2 * request.param):
        yield


def test_sums_and_their_gradients(blocks, rng):
    inputs = given(rng, torch.float32)
    found, expected = recokd_sums.sums(*inputs), at_once(*inputs)
    weights = [torch.randn(x.shape, generator=rng) for x in expected]
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
    mine, theirs = (
        torch.autograd.grad(sum((w * x).sum() for w, x in zip(weights, values, strict=True)), inputs[:2])
        for values in (found, expected)
    )
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


def test_sizes(blocks, rng):
    _, _, features, _, _, inside = given(rng, torch.float32)
    over_channels, over_voxels = recokd_sums.sizes(features, inside)
    torch.testing.assert_close(over_channels, features.abs().sum(dim=1))
    torch.testing.assert_close(over_voxels, (features.abs() * inside.unsqueeze(1)).sum(dim=2))


@pytest.mark.parametrize("frozen", [False, True], ids=["student", "teacher"])
def test_attended_and_its_gradients(blocks, frozen, rng):
    features, _, _, _, _, inside = given(rng, torch.float32)
    inside[0] = 0  # a sample where nothing counts
    features.requires_grad_(not frozen)
    score, bias = torch.randn(NARROW, generator=rng).requires_grad_(), torch.zeros(1, requires_grad=True)
    shares = (torch.einsum("bcv,c->bv", features, score) + bias).masked_fill(inside == 0, -1e30).softmax(dim=1) * inside
    expected = torch.einsum("bcv,bv->bc", features, shares)
    found = recokd_sums.attention_pooling(features, score, bias, inside)
    torch.testing.assert_close(found, expected)
    weights = torch.randn(expected.shape, generator=rng)
    learning = [score, bias] if frozen else [features, score, bias]
    mine, theirs = (torch.autograd.grad((weights * values).sum(), learning) for values in (found, expected))
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32(dtype, rng):
    student, weight, teacher, *weights = given(rng, torch.float32)
    half = student.detach().to(dtype).requires_grad_()
    found = recokd_sums.sums(half, weight, teacher.to(dtype), *weights)
    expected = at_once(half.detach().float(), weight, teacher.to(dtype).float(), *weights)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
    (of_half,) = torch.autograd.grad(found.squares.sum(), half)
    exact = half.detach().float().requires_grad_()
    of_exact = torch.autograd.grad(at_once(exact, weight, teacher.to(dtype).float(), *weights)[2].sum(), exact)
    assert of_half.dtype == dtype
    torch.testing.assert_close(of_half, of_exact[0].to(dtype))


def test_channels_last(rng):
    """With channels last in memory, as with cpu_speed on a CPU, values and gradients are the same."""
    student, weight, teacher, *weights = given(rng, torch.float32)
    expected = recokd_sums.sums(student, weight, teacher, *weights)
    last = student.detach().mT.contiguous().mT.requires_grad_()
    found = recokd_sums.sums(last, weight, teacher.mT.contiguous().mT, *weights)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs)
    mine = torch.autograd.grad(sum(x.sum() for x in found), (last, weight))
    theirs = torch.autograd.grad(sum(x.sum() for x in expected), (student, weight))
    torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_backward_pass_under_autocast_is_computed_in_float32(dtype, rng):
    student, weight, teacher, *weights = given(rng, torch.float32)
    score = torch.randn(NARROW, generator=rng).requires_grad_()

    def gradients(autocast):
        found = recokd_sums.sums(student, weight, teacher, *weights)
        context = recokd_sums.attention_pooling(student, score, torch.zeros(1), weights[-1])
        loss = sum(x.square().sum() for x in (*found, context))
        with torch.autocast("cpu", dtype=dtype, enabled=autocast):
            return torch.autograd.grad(loss, (student, weight, score))

    for mine, theirs in zip(gradients(True), gradients(False), strict=True):
        assert torch.equal(mine, theirs)
