"""Powers of features, summed over channels."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# what a core's cache holds; elsewhere as much as keeps a GPU busy
VALUES_AT_ONCE = {"cpu": 2**18}
VALUES_AT_ONCE_ELSEWHERE = 2**26


def mean_power(features: Tensor, power: int) -> Tensor:
    """``mean_c F^power``, a few channels at a time: written out it takes several passes over copies of the features,
    and keeps them for the gradient.

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
        for samples, channels in few_channels(features):
            squares = features[samples, channels].float().square()
            means[samples] += (squares if power == 2 else squares.square_()).sum(dim=1)
        return means.div_(features.shape[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (features,) = ctx.saved_tensors
        of_features = torch.empty_like(features)
        gradient = gradient.unsqueeze(1) * (ctx.power / features.shape[1])
        for samples, channels in few_channels(features):
            values = features[samples, channels].float()
            below = values.square().mul_(values) if ctx.power == 4 else values
            of_features[samples, channels] = below * gradient[samples]
        return of_features, None


def few_channels(features: Tensor) -> Iterator[tuple[slice, slice]]:
    """Samples and channels, a few at a time: channels of a single sample, or several samples with all of theirs."""
    return a_few(len(features), features.shape[1], values_at_once(features) // features[0, 0].numel())


def a_few(batch: int, parts: int, at_once: int) -> Iterator[tuple[slice, slice]]:
    """Slices of samples and of their parts: ``at_once`` parts of a single sample, or samples with all of theirs."""
    at_once = max(1, at_once)
    samples = max(1, at_once // parts)
    for sample in range(0, batch, samples):
        for start in range(0, parts, at_once):
            yield slice(sample, sample + samples), slice(start, start + at_once)


def values_at_once(features: Tensor) -> int:
    return VALUES_AT_ONCE.get(features.device.type, VALUES_AT_ONCE_ELSEWHERE)
