"""Backward passes compute in float32, whatever the caller does around them."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def in_float32(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Of a `torch.autograd.Function`: once differentiable, and outside of autocast.

    The forward passes of all terms run outside of it; a trainer that calls ``backward()`` inside would have the matrix
    products of these gradients in half precision.
    """

    @functools.wraps(backward)
    def outside(ctx: Any, *gradients: Tensor) -> Any:
        with torch.autocast(gradients[0].device.type, enabled=False):
            return backward(ctx, *gradients)

    return once_differentiable(outside)
