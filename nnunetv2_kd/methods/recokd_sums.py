"""Sums over a student's features after a 1x1 convolution, and over their differences from a teacher's.

The adapted features are computed block by block, forward and backward. Written as elementwise operations, the loss
would read and write a whole stage in each of them.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nnunetv2_kd.tensors.blockwise import in_float32, over_voxels, sample_part_blocks, values_at_once


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
        channels: ``(B, C)`` float32, how much each channel counts in ``squares``.
        voxels: ``(B, V)`` float32, how much each voxel counts in ``squares``.
        inside: ``(B, V)`` float32, 0 or 1.
    """
    return Sums(*_Sums.apply(student, weight, teacher, channels, voxels, inside))


def attention_pooling(features: Tensor, score: Tensor, bias: Tensor, inside: Tensor) -> Tensor:
    """``sum_v softmax_v(score . F + bias) F`` over the voxels that count, with gradients to all but ``inside``.

    Args:
        features: ``(B, C, V)``, any floating dtype.
        score: ``(C,)`` float32.
        bias: ``(1,)`` float32.
        inside: ``(B, V)`` float32, 0 or 1.

    Returns:
        ``(B, C)`` float32; 0 if no voxel counts.
    """
    return _Attended.apply(features, score, bias, inside)


def softmax_inside(scores: Tensor, inside: Tensor) -> Tensor:
    """Softmax over the voxels that count ``(B, V)``; 0 at the others, and everywhere if none counts."""
    return scores.masked_fill(inside == 0, -1e30).softmax(dim=1) * inside


def sizes(features: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
    """``sum_c |F|`` ``(B, V)`` and ``sum_v in |F|`` ``(B, C)`` of ``(B, C, V)``, without gradients."""
    features = features.detach()
    over_channels = torch.empty_like(inside)
    over_voxels = inside.new_zeros(features.shape[:2])
    for samples, part in _blocks(features):
        size = features[samples, :, part].float().abs()
        torch.sum(size, dim=1, out=over_channels[samples, part])
        _add_dots(over_voxels[samples], size, inside[samples, part])
    return over_channels, over_voxels


def _blocks(features: Tensor) -> Iterator[tuple[slice, slice]]:
    """Slices of samples and voxels, a block at a time: some voxels of one sample, or all voxels of several samples."""
    batch, channels, voxels = features.shape
    return sample_part_blocks(batch, voxels, values_at_once(features) // 2 // channels)


def _add_dots(total: Tensor, features: Tensor, voxels: Tensor) -> None:
    """``sum_v voxels F`` of ``(B, V)`` and ``(B, C, V)``, added to ``(B, C)``."""
    total += over_voxels(features, voxels.unsqueeze(1))[..., 0]


def _multiply_samples(weight: Tensor, features: Tensor) -> Tensor:
    """``weight F`` of ``(C, C')`` and ``(B, C', V)``, ``(B, C, V)``."""
    return torch.bmm(weight.expand(len(features), -1, -1), features)


class _Sums(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, student: Tensor, weight: Tensor, teacher: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        channels, voxels, inside = weights
        ctx.save_for_backward(student, weight, teacher, *weights)
        over_channels = torch.empty_like(inside)
        over_voxels, differences, weighted, unweighted = (torch.zeros_like(channels) for _ in range(4))
        for samples, part in _blocks(teacher):
            within = inside[samples, part]
            adapted = _multiply_samples(weight, student[samples, :, part].float())
            size = adapted.abs()
            torch.sum(size, dim=1, out=over_channels[samples, part])
            _add_dots(over_voxels[samples], size, within)
            difference = adapted.sub_(teacher[samples, :, part])
            _add_dots(differences[samples], difference, within)
            square = difference.square_()
            _add_dots(weighted[samples], square, voxels[samples, part])
            _add_dots(unweighted[samples], square, within)
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
        for samples, part in _blocks(teacher):
            features = student[samples, :, part].float()
            adapted = _multiply_samples(weight, features)
            within = inside[samples, part]
            gradient = _outer(of_voxels[samples], within, of_channels[samples, part].unsqueeze(1)).mul_(adapted.sign())
            factor = _outer(of_rows[samples], voxels[samples, part], of_inside[samples, part].unsqueeze(1))
            gradient.addcmul_(adapted.sub_(teacher[samples, :, part]), factor)
            gradient.addcmul_(of_differences[samples].unsqueeze(2), within.unsqueeze(1))
            of_student[samples, :, part] = _multiply_samples(weight.T, gradient)
            of_weight += over_voxels(gradient, features).sum(dim=0)
        return of_student, of_weight, None, None, None, None


class _Attended(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, score: Tensor, bias: Tensor, inside: Tensor) -> Tensor:
        scores = torch.empty_like(inside)
        for samples, part in _blocks(features):
            scores[samples, part] = _multiply_samples(score.unsqueeze(0), features[samples, :, part].float())[:, 0]
        shares = softmax_inside(scores + bias, inside)
        context = inside.new_zeros(features.shape[:2])
        for samples, part in _blocks(features):
            _add_dots(context[samples], features[samples, :, part].float(), shares[samples, part])
        ctx.save_for_backward(features, score, shares, context)
        return context

    @staticmethod
    @in_float32
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        features, score, shares, context = ctx.saved_tensors
        mean = (gradient * context).sum(dim=1, keepdim=True)
        of_scores, of_score = torch.empty_like(shares), torch.zeros_like(score)
        of_features = torch.empty_like(features) if ctx.needs_input_grad[0] else None
        for samples, part in _blocks(features):
            values, share = features[samples, :, part].float(), shares[samples, part]
            of_part = torch.bmm(gradient[samples].unsqueeze(1), values)[:, 0].sub_(mean[samples]).mul_(share)
            of_scores[samples, part] = of_part
            of_score += over_voxels(values, of_part.unsqueeze(1)).sum(dim=(0, 2))
            if of_features is not None:
                through_scores = score.unsqueeze(1) * of_part.unsqueeze(1)
                of_features[samples, :, part] = _outer(gradient[samples], share, through_scores)
        return of_features, of_score, of_scores.sum().view(1), None


def _outer(columns: Tensor, rows: Tensor, added: Tensor) -> Tensor:
    """``columns_c rows_v + added_v`` of every sample; ``added`` is ``(B, 1, V)`` or ``(B, C, V)``. As a matrix product
    with an inner size of 2 it would take twice as long."""
    return torch.addcmul(added, columns.unsqueeze(2), rows.unsqueeze(1))
