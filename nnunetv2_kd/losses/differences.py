"""Sums over a student's features behind a 1x1 convolution, and over their differences to a teacher's.

Adapted features are computed block by block, forward and backward: in a loss made of elementwise steps every one of
them reads and writes a whole stage. A block is a sample on an accelerator, and part of one on a CPU.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nnunetv2_kd.losses.precision import in_float32

VALUES_AT_ONCE = 2**17  # of features on a CPU, so that a block stays in the cache between two steps


class Sums(NamedTuple):
    """With ``F = weight f_s`` and ``D = F - f_t``, ``in`` 1 where a voxel counts and 0 elsewhere:

    Attributes:
        over_channels: ``sum_c |F|``, ``(B, V)``.
        over_voxels: ``sum_v in |F|``, ``(B, C)``.
        squares: ``sum_{c,v} (channels_c voxels_v + in_v) D^2``, ``(B,)``.
        differences: ``sum_v in D``, ``(B, C)``.
    """

    over_channels: Tensor
    over_voxels: Tensor
    squares: Tensor
    differences: Tensor


def sums(student: Tensor, weight: Tensor, teacher: Tensor, channels: Tensor, voxels: Tensor, inside: Tensor) -> Sums:
    """All of `Sums`, with gradients to ``student`` and ``weight``.

    Args:
        student: ``(B, C', V)``, any floating dtype.
        weight: of the 1x1 convolution ``(C, C')`` float32.
        teacher: ``(B, C, V)``, any floating dtype.
        channels: ``(B, C)`` float32, which channels count for ``squares`` and how much.
        voxels: ``(B, V)`` float32, likewise, which voxels.
        inside: ``(B, V)`` float32, 0 or 1.
    """
    return Sums(*_Sums.apply(student, weight, teacher, channels, voxels, inside))


def attended(features: Tensor, score: Tensor, bias: Tensor, inside: Tensor) -> Tensor:
    """``sum_v softmax_v(score . F + bias) F`` over the voxels that count, with gradients to all but ``inside``.

    Args:
        features: ``(B, C, V)``, any floating dtype.
        score: ``(C,)`` float32.
        bias: ``(1,)`` float32.
        inside: ``(B, V)`` float32, 0 or 1.

    Returns:
        ``(B, C)`` float32; 0 where no voxel counts.
    """
    return _Attended.apply(features, score, bias, inside)


def softmax_inside(scores: Tensor, inside: Tensor) -> Tensor:
    """Softmax over the voxels that count ``(B, V)``; 0 at the others, and everywhere where none counts."""
    return scores.masked_fill(inside == 0, -1e30).softmax(dim=1) * inside


def sizes(features: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
    """``sum_c |F|`` ``(B, V)`` and ``sum_v in |F|`` ``(B, C)`` of ``(B, C, V)``, without gradients."""
    features = features.detach()
    over_channels = torch.empty_like(inside)
    over_voxels = inside.new_zeros(features.shape[:2])
    for sample, part in _blocks(features):
        size = features[sample, :, part].float().abs()
        torch.sum(size, dim=0, out=over_channels[sample, part])
        over_voxels[sample].addmv_(size, inside[sample, part])
    return over_channels, over_voxels


def _blocks(features: Tensor) -> Iterator[tuple[int, slice]]:
    """Sample by sample, on a CPU some voxels at a time."""
    batch, channels, voxels = features.shape
    few = max(1, VALUES_AT_ONCE // channels) if features.device.type == "cpu" else voxels
    for sample in range(batch):
        for start in range(0, voxels, few):
            yield sample, slice(start, start + few)


class _Sums(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, student: Tensor, weight: Tensor, teacher: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        channels, voxels, inside = weights
        ctx.save_for_backward(student, weight, teacher, *weights)
        over_channels = torch.empty_like(inside)
        over_voxels, differences, weighted, unweighted = (torch.zeros_like(channels) for _ in range(4))
        for sample, part in _blocks(teacher):
            within = inside[sample, part]
            adapted = weight @ student[sample, :, part].float()
            size = adapted.abs()
            torch.sum(size, dim=0, out=over_channels[sample, part])
            over_voxels[sample].addmv_(size, within)
            difference = adapted.sub_(teacher[sample, :, part])
            differences[sample].addmv_(difference, within)
            square = difference.square_()
            weighted[sample].addmv_(square, voxels[sample, part])
            unweighted[sample].addmv_(square, within)
        squares = (channels * weighted + unweighted).sum(dim=1)
        return over_channels, over_voxels, squares, differences

    @staticmethod
    @in_float32
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        of_channels, of_voxels, of_squares, of_differences = gradients
        student, weight, teacher, channels, voxels, inside = ctx.saved_tensors
        of_student, of_weight = torch.empty_like(student), torch.zeros_like(weight)
        of_rows = 2 * of_squares.unsqueeze(1) * channels
        of_inside = 2 * of_squares.unsqueeze(1) * inside
        for sample, part in _blocks(teacher):
            features = student[sample, :, part].float()
            adapted = weight @ features
            within = inside[sample, part]
            gradient = _outer(of_voxels[sample], within, of_channels[sample, part]).mul_(adapted.sign())
            factor = _outer(of_rows[sample], voxels[sample, part], of_inside[sample, part])
            gradient.addcmul_(adapted.sub_(teacher[sample, :, part]), factor)
            gradient.addr_(of_differences[sample], within)
            of_student[sample, :, part] = weight.T @ gradient
            of_weight.addmm_(gradient, features.T)
        return of_student, of_weight, None, None, None, None


class _Attended(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, score: Tensor, bias: Tensor, inside: Tensor) -> Tensor:
        scores = torch.empty_like(inside)
        for sample, part in _blocks(features):
            torch.mv(features[sample, :, part].float().T, score, out=scores[sample, part])
        shares = softmax_inside(scores + bias, inside)
        context = inside.new_zeros(features.shape[:2])
        for sample, part in _blocks(features):
            context[sample].addmv_(features[sample, :, part].float(), shares[sample, part])
        ctx.save_for_backward(features, score, shares, context)
        return context

    @staticmethod
    @in_float32
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        features, score, shares, context = ctx.saved_tensors
        mean = (gradient * context).sum(dim=1)
        of_scores, of_score = torch.empty_like(shares), torch.zeros_like(score)
        of_features = torch.empty_like(features) if ctx.needs_input_grad[0] else None
        for sample, part in _blocks(features):
            values, share = features[sample, :, part].float(), shares[sample, part]
            of_part = torch.mv(values.T, gradient[sample]).sub_(mean[sample]).mul_(share)
            of_scores[sample, part] = of_part
            of_score.addmv_(values, of_part)
            if of_features is not None:
                of_features[sample, :, part] = torch.outer(gradient[sample], share).addr_(score, of_part)
        return of_features, of_score, of_scores.sum().view(1), None


def _outer(column: Tensor, row: Tensor, added: Tensor) -> Tensor:
    """``column_c row_v + added_v``, which a matrix product with an inner size of 2 takes twice as long for."""
    return torch.addcmul(added, column.unsqueeze(1), row)
