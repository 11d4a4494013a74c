"""Regions: which voxels belong to each, at any grid, and sums of a network's features over them."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunetv2_kd.regions.grid_sums import GridSums, grid_sums, project, region_sums, spread

MOST_BITS = (
    8  # up to this many regions, the table has a row for every set of regions; above, only for the sets that occur
)


class Regions:
    """Which regions every voxel of a batch belongs to, as one number per voxel.

    ``m_k(v)``, the membership of voxel ``v`` in region ``k``, is ``table[codes[v], k]``. It is never stored for all
    regions at once: 105 classes at 128^3 would take 0.9 GB per sample.

    Args:
        codes: ``(B, *S)`` int32, in ``[0, U)``: which set of regions a voxel belongs to.
        table: ``(U, K)`` float32, 0 or 1: which regions are in each set; a row of zeros for voxels in no region.
    """

    def __init__(self, codes: Tensor, table: Tensor) -> None:
        self.codes = codes
        self.table = table
        self._grids: dict[tuple[int, ...], GridSums] = {}
        self._inside: dict[tuple[int, ...], Tensor] = {}

    @property
    def count(self) -> int:
        """The number of regions ``K``."""
        return self.table.shape[1]

    @property
    def size(self) -> tuple[int, ...]:
        """``S``."""
        return tuple(self.codes.shape[1:])

    def on_grid(self, size: Sequence[int]) -> GridSums:
        """The cells of a grid whose size divides that of the regions' own; computed once per grid."""
        size = tuple(size)
        if size not in self._grids:
            self._grids[size] = grid_sums(self.codes, len(self.table), size)
        return self._grids[size]

    def sums(self, features: Tensor) -> Tensor:
        """``sum_v m_k(v) F(v)`` for every region, ``m_k`` area-averaged at the grid of the features.

        Args:
            features: ``(B, C, *S')``, any floating dtype; summed in float32.

        Returns:
            ``(B, K, C)`` float32.
        """
        return self.table.T @ region_sums(features, self.on_grid(features.shape[2:]))

    def spread(self, values: Tensor, size: Sequence[int]) -> Tensor:
        """``sum_k m_k(v) values_k`` at every cell of a grid: the adjoint of `sums`.

        Args:
            values: ``(B, K, C)`` float32.
            size: the grid.

        Returns:
            ``(B, C, *size)`` float32.
        """
        return spread(self.table @ values, self.on_grid(size))

    def project(self, values: Tensor, features: Tensor) -> Tensor:
        """``sum_k m_k(v) <values_k, F(v)>`` at every cell of the features' grid.

        Args:
            values: ``(B, K, C)`` float32.
            features: ``(B, C, *S')``.

        Returns:
            ``(B, *S')`` float32.
        """
        return project(self.table @ values, features, self.on_grid(features.shape[2:]))

    def mass(self, size: Sequence[int] | None = None) -> Tensor:
        """How many cells of a grid (default: voxels) make up each region: ``(B, K)`` float32."""
        return self.on_grid(self.size if size is None else size).mass() @ self.table

    def inside(self, size: Sequence[int] | None = None) -> Tensor:
        """How much of every cell of a grid (default: voxel) belongs to any region: ``(B, *size)`` float32 in [0, 1]."""
        size = self.size if size is None else tuple(size)
        if size not in self._inside:
            of_codes = self.table.amax(dim=1).view(1, -1, 1).expand(len(self.codes), -1, 1)
            self._inside[size] = spread(of_codes, self.on_grid(size))[:, 0].clamp(max=1)
        return self._inside[size]

    def foreground(self) -> Tensor:
        """1 at voxels of any region except the first, which is the background: ``(B, 1, *S)`` float32."""
        return self.table[:, 1:].amax(dim=1)[self.codes].unsqueeze(1)

    def dense(self) -> Tensor:
        """The membership as an array: ``(B, K, *S)`` float32. Large if there are many regions."""
        return self.table[self.codes].movedim(-1, 1).contiguous()


def label_regions(target: Tensor, num_classes: int, ignore_label: int | None = None) -> Regions:
    """Regions of ordinary labels: one per class, background included.

    Args:
        target: ``(B, 1, *S)``, class indices in ``[0, num_classes)`` or ``ignore_label``; any numeric dtype.
        num_classes: number of classes ``K``, background included.
        ignore_label: voxels with this value belong to no region.

    >>> labels = torch.tensor([[[[0.0, 1.0, 1.0, 2.0]]]])  # one sample, one row of four voxels
    >>> label_regions(labels, num_classes=3).mass()
    tensor([[1., 2., 1.]])
    """
    labels = target[:, 0].int()  # reads twice as fast as long, and codes are read at every grid
    table = torch.eye(num_classes + 1, num_classes, device=target.device)
    return Regions(labels if ignore_label is None else labels.masked_fill(labels == ignore_label, num_classes), table)


def overlapping_regions(target: Tensor, has_ignore: bool = False) -> Regions:
    """Regions of nnU-Net's region-based training: the complement of their union as background, then every region.

    Args:
        target: ``(B, R, *S)`` of 0/1, or ``(B, R + 1, *S)`` whose last channel marks ignored voxels.
        has_ignore: whether there is such a last channel; ignored voxels belong to no region.

    Raises:
        ValueError: if there are more than 62 regions.

    >>> tumour_and_core = torch.tensor([[[[0.0, 1.0, 1.0]], [[0.0, 0.0, 1.0]]]])
    >>> overlapping_regions(tumour_and_core).mass()  # background, tumour, core
    tensor([[1., 2., 1.]])
    """
    marked = target > 0.5
    regions = marked[:, :-1] if has_ignore else marked
    count = regions.shape[1]
    if count > 62:
        raise ValueError(f"expected at most 62 overlapping regions, got {count}")
    # bit r is set if a voxel belongs to region r, bit R if it is ignored
    codes = regions[:, 0].long()
    for r in range(1, count):
        codes = codes + (regions[:, r].long() << r)
    if has_ignore:
        codes = codes.masked_fill(marked[:, -1], 1 << count)
    if count <= MOST_BITS:
        sets = torch.arange((1 << count) + 1, device=target.device)
    else:
        sets, codes = torch.unique(codes, return_inverse=True)
    table = (sets.unsqueeze(1) >> torch.arange(count, device=target.device)) & 1
    background = sets == 0
    return Regions(codes.int(), torch.cat((background.unsqueeze(1), table), dim=1).float())


def at_grid(membership: Tensor, size: Sequence[int]) -> Tensor:
    """Membership at a coarser grid, as the area average, so that a small structure keeps a fractional mass.

    Args:
        membership: ``(B, K, *S)`` in [0, 1].
        size: the spatial size wanted, no larger than ``S``.

    Returns:
        ``(B, K, *size)`` in [0, 1]; its sum, times the voxels per cell, equals the sum of ``membership``.

    >>> at_grid(torch.tensor([[[[1.0, 0.0], [0.0, 0.0]]]]), (1, 1))
    tensor([[[[0.2500]]]])
    """
    if tuple(membership.shape[2:]) == tuple(size):
        return membership
    pool: Callable[[Tensor, Any], Tensor] = F.adaptive_avg_pool2d if membership.ndim == 4 else F.adaptive_avg_pool3d
    return pool(membership, tuple(size))


def map_at_grid(maps: Tensor, size: Sequence[int]) -> Tensor:
    """A map of one value per voxel at another grid, linearly interpolated.

    Args:
        maps: ``(B, *S)``.
        size: the spatial size wanted.

    Returns:
        ``(B, *size)``.
    """
    mode = "bilinear" if maps.ndim == 3 else "trilinear"
    return F.interpolate(maps.unsqueeze(1), size=tuple(size), mode=mode, align_corners=False)[:, 0]
