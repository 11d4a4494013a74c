"""Sums over regions on an accelerator, where memberships would be too large to be spelt out: every voxel is added to
its region."""

import math

import torch
from torch import Tensor

from nnunetv2_kd.losses.powers import few_channels

# as many sums of every region are kept side by side, as a power of two, where there are more cells than sums: voxels
# that are added to the same one wait for each other, and their digits get lost in the end
MOST_SIDE_BY_SIDE = 9


class Scattered:
    """See `nnunetv2_kd.losses.cells.Cells`; arguments as for `cells_of`."""

    def __init__(self, codes: Tensor, count: int, size: tuple[int, ...]) -> None:
        self.batch = len(codes)
        self.count = count
        self.size = size
        held = by_cell(codes, size)
        self.voxels = held.shape[1]
        self._bits = min(MOST_SIDE_BY_SIDE, max(1, held.shape[2] // count).bit_length() - 1)
        side = torch.arange(held.shape[2], device=codes.device) % (1 << self._bits)
        # (B, f, cells): to which sum each voxel is added
        self._slots = (held.long() << self._bits) + side

    def mass(self) -> Tensor:
        return self.sums(torch.ones((self.batch, 1, *self.size), device=self._slots.device))[..., 0]

    def sums(self, features: Tensor, weights: Tensor | None = None) -> Tensor:
        sums = features.new_zeros((*features.shape[:2], self.count << self._bits), dtype=torch.float32)
        for samples, channels in few_channels(features):
            values = features[samples, channels].flatten(2).float()
            if weights is not None:
                values = values * weights[samples].flatten(1).unsqueeze(1)
            for slots in self._slots[samples].unbind(dim=1):
                sums[samples, channels].scatter_add_(2, slots.unsqueeze(1).expand(values.shape), values)
        return self._added_up(sums)

    def spread(self, values: Tensor) -> Tensor:
        first, *others = self._slots.unbind(dim=1)
        maps = self._looked_up(values.mT, first)
        for slots in others:
            maps += self._looked_up(values.mT, slots)
        return maps.mul_(1 / self.voxels).unflatten(2, self.size)

    def project(self, values: Tensor, features: Tensor) -> Tensor:
        maps = values.new_zeros((self.batch, math.prod(self.size)))
        for samples, channels in few_channels(features):
            part, of_codes = features[samples, channels].flatten(2), values[samples, :, channels].mT
            for slots in self._slots[samples].unbind(dim=1):
                maps[samples] += self._looked_up(of_codes, slots).mul_(part).sum(dim=1)
        return maps.mul_(1 / self.voxels).unflatten(1, self.size)

    def _added_up(self, sums: Tensor) -> Tensor:
        """``(B, C, all sums)`` as ``(B, U, C)``, of cells and not of voxels."""
        return sums.unflatten(2, (self.count, -1)).sum(dim=3).mT * (1 / self.voxels)

    def _looked_up(self, values: Tensor, slots: Tensor) -> Tensor:
        """``(B, C, U)`` and ``(B, cells)`` as ``(B, C, cells)``."""
        codes = (slots >> self._bits).unsqueeze(1)
        return values.gather(2, codes.expand(-1, values.shape[1], -1))


def by_cell(codes: Tensor, size: tuple[int, ...]) -> Tensor:
    """``(B, *S)`` as ``(B, voxels of a cell, cells)``."""
    pairs = [n for fine, coarse in zip(codes.shape[1:], size, strict=True) for n in (coarse, fine // coarse)]
    # the cells last: the other way round the copy takes ten times as long
    order = [0, *range(2, len(pairs) + 1, 2), *range(1, len(pairs) + 1, 2)]
    return codes.reshape(len(codes), *pairs).permute(order).reshape(len(codes), -1, math.prod(size))
