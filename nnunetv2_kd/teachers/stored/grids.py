"""Where the voxels of a preprocessed case are in the image, and how to resample predictions from one such grid to
another.

nnU-Net transposes the axes of an image, crops it to its nonzero box, and resamples that box from ``C`` to ``S`` voxels
per axis. Voxel ``j`` of ``S`` is then at ``(j + 0.5) * C / S - 0.5`` in the box. This amounts to one shift and one
scale per axis, so one linear interpolation takes a prediction from a teacher's grid to a student's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nnunetv2_kd.errors import KDError


@dataclass(frozen=True)
class Grid:
    """The voxels of a preprocessed case.

    Attributes:
        axes: nnU-Net's ``transpose_forward``: for every axis of the grid, the axis of the image.
        image: the image's size before cropping, in the grid's order of axes.
        box: per axis, in the same order, the first voxel left by cropping and one past the last.
        size: of the grid itself.
    """

    axes: tuple[int, ...]
    image: tuple[int, ...]
    box: tuple[tuple[int, int], ...]
    size: tuple[int, ...]

    @classmethod
    def of(cls, transpose: Sequence[int], properties: Mapping[str, Any], size: Sequence[int]) -> "Grid":
        """The grid of a case.

        Args:
            transpose: the plans' ``transpose_forward``.
            properties: of the case, as written by nnU-Net's preprocessing.
            size: ``S`` of the preprocessed image.
        """
        return cls(
            tuple(int(axis) for axis in transpose),
            tuple(int(side) for side in properties["shape_before_cropping"]),
            tuple((int(low), int(high)) for low, high in properties["bbox_used_for_cropping"]),
            tuple(int(side) for side in size),
        )

    def in_image(self, axis: int) -> np.ndarray:
        """Position of every voxel along an axis of the grid, in voxels of the uncropped image."""
        low, high = self.box[axis]
        return low + (np.arange(self.size[axis]) + 0.5) * (high - low) / self.size[axis] - 0.5

    def from_image(self, axis: int, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Convert positions in the image to positions along an axis of the grid, and tell which of them are
        in the box."""
        low, high = self.box[axis]
        inside = (positions >= low - 0.5) & (positions < high - 0.5)
        # rounded, so that equal grids give whole numbers
        return np.round((positions - low + 0.5) * self.size[axis] / (high - low) - 0.5, 9), inside


@dataclass(frozen=True)
class Reading:
    """How the axes of an image from one of nnU-Net's readers map to those from another reader.

    Attributes:
        axes: for every axis of the first reader's image, the axis of the second's.
        flipped: whether that axis is reversed.
    """

    axes: tuple[int, ...] = (0, 1, 2)
    flipped: tuple[bool, ...] = (False, False, False)

    @property
    def inverse(self) -> "Reading":
        order = tuple(self.axes.index(axis) for axis in range(len(self.axes)))
        return Reading(order, tuple(self.flipped[axis] for axis in order))


def compare_readers(first: Any, second: Any, shape: Sequence[int], properties: dict[str, Any], ending: str) -> Reading:
    """Find how two readers' axes correspond: one writes a test image, the other reads it.

    Args:
        first, second: nnU-Net's reader classes.
        shape: of the image, as the second reads it.
        properties: of that image, as the second reads them.
        ending: of the image's file.
    """
    if first is second:
        return Reading()
    marked = np.zeros(tuple(shape), np.uint8)
    marked[0, 0, 0] = 1
    for axis, side in enumerate(shape):
        if side > 1:
            corner = [0, 0, 0]
            corner[axis] = side - 1
            marked[tuple(corner)] = axis + 2
    with TemporaryDirectory() as folder:
        file = str(Path(folder) / f"corners{ending}")
        second().write_seg(marked, file, properties)
        found = np.asarray(first().read_seg(file)[0][0])
    origin = np.argwhere(found == 1)[0]
    axes, flipped = [-1, -1, -1], [False, False, False]
    for axis, side in enumerate(shape):
        if side > 1:
            moved = np.argwhere(found == axis + 2)[0] - origin
            own = int(np.flatnonzero(moved)[0])
            axes[own], flipped[own] = axis, bool(moved[own] < 0)
    left = [axis for axis, side in enumerate(shape) if side == 1]
    return Reading(tuple(axis if axis >= 0 else left.pop() for axis in axes), tuple(flipped))


def resample(array: Tensor, source: Grid, target: Grid, reading: Reading, nearest: bool = False) -> Tensor:
    """Resample an array from one grid to another, by linear interpolation or to the nearest voxel.

    Args:
        array: ``(C, *source.size)``.
        source, target: grids of the same case.
        reading: from the axes of the target's image to those of the source's.
        nearest: take the nearest voxel, for labels.

    Returns:
        ``(C, *target.size)`` of the array's dtype; 0 outside the source's box, as nnU-Net fills it. At the edge of the
        box, the outermost voxel is repeated.

    Raises:
        KDError: if the two images differ in size, or the boxes do not overlap.
    """
    order = []
    for axis, of_image in enumerate(target.axes):
        of_source = source.axes.index(reading.axes[of_image])
        order.append(of_source)
        if target.image[axis] != source.image[of_source]:
            raise KDError(
                f"the image has {list(source.image)} voxels in the teacher's order of axes, but had "
                f"{list(target.image)} in the student's order when the student's data were preprocessed"
            )
    array = array.permute(0, *(axis + 1 for axis in order))
    for axis, of_source in enumerate(order):
        positions = target.in_image(axis)
        if reading.flipped[target.axes[axis]]:
            positions = target.image[axis] - 1 - positions
        index, inside = source.from_image(of_source, positions)
        if not inside.any():
            raise KDError(
                "the teacher's and the student's nonzero boxes in the image do not overlap: along one axis, voxels "
                f"{source.box[of_source]} and {target.box[axis]}"
            )
        array = _along(array, axis + 1, index, inside, nearest)
    return array.contiguous()


def _along(array: Tensor, dim: int, index: np.ndarray, inside: np.ndarray, nearest: bool) -> Tensor:
    """Interpolate along one dimension."""
    last = array.shape[dim] - 1
    if nearest:
        taken = np.clip(np.floor(index + 0.5), 0, last).astype(np.int64)
        kept = array.index_select(dim, torch.from_numpy(taken))
        return kept * _as_dim(inside, kept, dim)
    index = np.clip(index, 0, last)
    low = np.clip(np.floor(index).astype(np.int64), 0, max(last - 1, 0))
    share = index - low
    if not share.any() and inside.all() and np.array_equal(low, np.arange(last + 1)):
        return array
    below = array.index_select(dim, torch.from_numpy(low)) * _as_dim((1 - share) * inside, array, dim)
    above = array.index_select(dim, torch.from_numpy(np.minimum(low + 1, last))) * _as_dim(share * inside, array, dim)
    return below + above


def _as_dim(values: np.ndarray, like: Tensor, dim: int) -> Tensor:
    return torch.from_numpy(values).to(like.dtype).view(*(-1 if d == dim else 1 for d in range(like.ndim)))
