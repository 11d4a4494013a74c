"""The mean over mirrored copies of a patch, in one buffer: the same sums as nnU-Net's, without mirroring a copy of
every output."""

from collections.abc import Callable, Sequence
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

from nnunetv2_kd.inference.interpolation import Array, compile_kernel, in_threads

WORTH_THREADS = 1 << 20  # values; starting threads takes a fraction of a millisecond


class MirroredMean:
    """Calls a network on every mirrored copy of a patch.

    The next call overwrites the returned buffer, so it must be used before.
    """

    def __init__(self) -> None:
        self._total: Tensor | None = None

    def __call__(self, network: Callable[[Tensor], Tensor], data: Tensor, axes: Sequence[int], threads: int) -> Tensor:
        """``(1, K, *S)``: the mean of the network's outputs, each mirrored back.

        Args:
            network: ``(1, C, *S)`` to ``(1, K, *S)``, float32 on the CPU; its next call may overwrite its output.
            axes: spatial axes to mirror, counted from 0.
        """
        output = network(data)
        if self._total is None or self._total.shape != output.shape:
            self._total = torch.empty(output.shape)
        total = self._total.copy_(output)
        every = [chosen for count in range(1, len(axes) + 1) for chosen in combinations(axes, count)]
        for chosen in every:
            output = network(torch.flip(data, [axis + 2 for axis in chosen]))
            _add_mirrored(total, output, chosen, threads)
        total /= len(every) + 1
        return total


def _add_mirrored(total: Tensor, output: Tensor, axes: Sequence[int], threads: int) -> None:
    to, of = _in_three_dimensions(total), _in_three_dimensions(output)
    missing = 3 - (total.ndim - 2)
    flipped = [axis - missing in axes for axis in range(3)]

    def work(number: int) -> None:
        add_flipped(to[number], of[number], *flipped)

    in_threads(work, range(len(to)), threads if total.numel() >= WORTH_THREADS else 1)


def _in_three_dimensions(values: Tensor) -> np.ndarray:
    array = values[0].contiguous().numpy()
    return array.reshape(array.shape[0], *(1,) * (4 - array.ndim), *array.shape[1:])


@compile_kernel
def add_flipped(total: Array, values: Array, flip_z: bool, flip_y: bool, flip_x: bool) -> None:
    """Add ``(D, H, W)`` to another, mirrored along some axes."""
    depth, height, width = total.shape
    for z in range(depth):
        for y in range(height):
            row = values[depth - 1 - z if flip_z else z, height - 1 - y if flip_y else y]
            if flip_x:
                for x in range(width):
                    total[z, y, x] += row[width - 1 - x]
            else:
                for x in range(width):
                    total[z, y, x] += row[x]
