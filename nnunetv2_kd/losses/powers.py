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
        for sample, channels in few_channels(features):
            squares = features[sample, channels].float().square()
            means[sample] += (squares if power == 2 else squares.square_()).sum(dim=0)
        return means.div_(features.shape[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (features,) = ctx.saved_tensors
        of_features = torch.empty_like(features)
        gradient = gradient * (ctx.power / features.shape[1])
        for sample, channels in few_channels(features):
            values = features[sample, channels].float()
            below = values.square().mul_(values) if ctx.power == 4 else values
            of_features[sample, channels] = below * gradient[sample]
        return of_features, None


def few_channels(features: Tensor) -> Iterator[tuple[int, slice]]:
    """Every sample's channels, a few at a time."""
    most = VALUES_AT_ONCE.get(features.device.type, VALUES_AT_ONCE_ELSEWHERE)
    at_once = max(1, most // features[0, 0].numel())
    for sample in range(len(features)):
        for start in range(0, features.shape[1], at_once):
            yield sample, slice(start, start + at_once)
