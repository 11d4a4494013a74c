"""Products, powers and sums over the voxels of feature maps: block by block, so that no stage is copied whole, and
always in float32, even under autocast."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def in_float32(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate the backward pass of a `torch.autograd.Function`: differentiable only once, and outside autocast.

    The forward passes of all terms run outside autocast. Without this decorator, a trainer that calls ``backward()``
    inside it would compute these gradients' matrix products in half precision.
    """

    @functools.wraps(backward)
    def outside(ctx: Any, *gradients: Tensor) -> Any:
        with torch.autocast(gradients[0].device.type, enabled=False):
            return backward(ctx, *gradients)

    return once_differentiable(outside)


SHORT = 2**14  # voxels that a GPU sums fast enough in one product
PART = 2048


def over_voxels(left: Tensor, right: Tensor) -> Tensor:
    """``sum_v left_m(v) right_n(v)``: ``(B, M, N)`` from ``(B, M, V)`` and ``(B, N, V)``, float32."""
    if left.device.type == "cpu" or left.shape[2] <= SHORT:
        return left @ right.mT
    return in_parts(left, right, part_of(left.shape[2]))


def in_parts(left: Tensor, right: Tensor, size: int) -> Tensor:
    """Like `over_voxels`, but ``size`` voxels at a time, whose products are then added. With few rows and columns, a
    GPU gives a whole sum to one of its processors: 11 ms for 3 regions and 32 channels at 128^3, 0.6 ms in parts."""
    batch = len(left)
    left, right = (x.unflatten(2, (-1, size)).transpose(1, 2).flatten(0, 1) for x in (left, right))
    return torch.bmm(left, right.mT).unflatten(0, (batch, -1)).sum(dim=1)


def part_of(volume: int) -> int:
    """The largest divisor of a number of voxels that is at most `PART`; the number itself if that divisor is tiny."""
    largest = next(n for n in range(min(PART, volume), 0, -1) if volume % n == 0)
    return largest if largest >= PART // 16 else volume


# on a CPU as many as fit into a core's cache; elsewhere enough to keep a GPU busy
VALUES_AT_ONCE = {"cpu": 2**18}
VALUES_AT_ONCE_ELSEWHERE = 2**26


def mean_power(features: Tensor, power: int) -> Tensor:
    """``mean_c F^power``, a few channels at a time. Written as a formula, it would take several passes over copies of
    the features and keep the copies for the gradient.

    Args:
        features: ``(B, C, *S)``, any floating dtype; computed in float32.
        power: 2 or 4.

    Returns:
        ``(B, *S)`` float32, at least 0.
    """
    if power not in (2, 4):
        raise ValueError(f"expected the power 2 or 4, got {power}")
    return _MeanPower.apply(features, power)


class _MeanPower(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, power: int) -> Tensor:
        ctx.save_for_backward(features)
        ctx.power = power
        means = features.new_zeros((len(features), *features.shape[2:]), dtype=torch.float32)
        for samples, channels in channel_blocks(features):
            squares = features[samples, channels].float().square()
            means[samples] += (squares if power == 2 else squares.square_()).sum(dim=1)
        return means.div_(features.shape[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (features,) = ctx.saved_tensors
        of_features = torch.empty_like(features)
        gradient = gradient.unsqueeze(1) * (ctx.power / features.shape[1])
        for samples, channels in channel_blocks(features):
            values = features[samples, channels].float()
            below = values.square().mul_(values) if ctx.power == 4 else values
            of_features[samples, channels] = below * gradient[samples]
        return of_features, None


def channel_blocks(features: Tensor) -> Iterator[tuple[slice, slice]]:
    """Slices of samples and channels, a block at a time: some channels of one sample, or all of several samples."""
    return sample_part_blocks(len(features), features.shape[1], values_at_once(features) // features[0, 0].numel())


def sample_part_blocks(batch: int, parts: int, at_once: int) -> Iterator[tuple[slice, slice]]:
    """Slices of samples and of their parts: ``at_once`` parts of one sample, or all parts of several samples."""
    at_once = max(1, at_once)
    samples = max(1, at_once // parts)
    for sample in range(0, batch, samples):
        for start in range(0, parts, at_once):
            yield slice(sample, sample + samples), slice(start, start + at_once)


def values_at_once(features: Tensor) -> int:
    return VALUES_AT_ONCE.get(features.device.type, VALUES_AT_ONCE_ELSEWHERE)
