"""Matrix products whose inner dimension is the voxels of a patch."""

import torch
from torch import Tensor

SHORT = 2**14  # voxels that a GPU sums up fast enough in one go
PART = 2048


def over_voxels(left: Tensor, right: Tensor) -> Tensor:
    """``sum_v left_m(v) right_n(v)`` of ``(B, M, V)`` and ``(B, N, V)`` float32, ``(B, M, N)``."""
    if left.device.type == "cpu" or left.shape[2] <= SHORT:
        return left @ right.mT
    return in_parts(left, right, part_of(left.shape[2]))


def in_parts(left: Tensor, right: Tensor, size: int) -> Tensor:
    """As `over_voxels`, ``size`` voxels at a time and these products added up. With few rows and columns a GPU leaves
    the whole sum to one of its processors: 11 ms for 3 regions and 32 channels at 128^3, and 0.6 ms in parts."""
    batch = len(left)
    left, right = (x.unflatten(2, (-1, size)).transpose(1, 2).flatten(0, 1) for x in (left, right))
    return torch.bmm(left, right.mT).unflatten(0, (batch, -1)).sum(dim=1)


def part_of(volume: int) -> int:
    """The largest divisor of a number of voxels up to `PART`; all of them where only tiny divisors are left."""
    largest = next(n for n in range(min(PART, volume), 0, -1) if volume % n == 0)
    return largest if largest >= PART // 16 else volume
