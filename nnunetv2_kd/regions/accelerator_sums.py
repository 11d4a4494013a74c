"""Sums over regions on an accelerator: `DenseSums` if the memberships are small enough to be stored as an array,
otherwise `ScatteredSums`, which adds every voxel to its region's sum."""

import math

import torch
from torch import Tensor

from nnunetv2_kd.tensors.blockwise import channel_blocks, over_voxels

MOST_SHARES = 2**24  # float32 values of a batch: 64 MiB


def fits_in_memory(codes: Tensor, count: int, size: tuple[int, ...]) -> bool:
    """Whether the memberships of a grid take at most 64 MiB; arguments as for `DenseSums`."""
    return len(codes) * count * math.prod(size) <= MOST_SHARES


class DenseSums:
    """See `nnunetv2_kd.regions.grid_sums.GridSums`; arguments as for `grid_sums`.

    It makes only a few calls for an entire batch, and the CPU waits for none of them: a small training step on a GPU
    takes as long as launching its operations.
    """

    def __init__(self, codes: Tensor, count: int, size: tuple[int, ...]) -> None:
        self.batch = len(codes)
        self.count = count
        self.size = size
        held = by_cell(codes, size)
        # (B, U, cells): which share of each cell's voxels has each code
        self._shares = torch.zeros((self.batch, count, held.shape[2]), device=codes.device)
        share = self._shares.new_full((1, 1, 1), 1 / held.shape[1])
        self._shares.scatter_add_(1, held.long(), share.expand(held.shape))

    def mass(self) -> Tensor:
        return self._shares.sum(dim=2)

    def sums(self, features: Tensor, weights: Tensor | None = None) -> Tensor:
        shares = self._shares if weights is None else self._shares * weights.flatten(1).unsqueeze(1)
        sums = shares.new_empty((self.batch, self.count, features.shape[1]))
        for samples, channels in channel_blocks(features):
            sums[samples, :, channels] = over_voxels(shares[samples], features[samples, channels].flatten(2).float())
        return sums

    def spread(self, values: Tensor) -> Tensor:
        return (values.mT @ self._shares).unflatten(2, self.size)

    def project(self, values: Tensor, features: Tensor) -> Tensor:
        of_codes = torch.zeros_like(self._shares)
        for samples, channels in channel_blocks(features):
            of_codes[samples].baddbmm_(values[samples, :, channels], features[samples, channels].flatten(2).float())
        return of_codes.mul_(self._shares).sum(dim=1).unflatten(1, self.size)


# log2 of the most partial sums kept for each region: additions to the same sum wait for each other, and a sum of very
# many values loses digits
MOST_SIDE_BY_SIDE = 9


class ScatteredSums:
    """See `nnunetv2_kd.regions.grid_sums.GridSums`; arguments as for `grid_sums`."""

    def __init__(self, codes: Tensor, count: int, size: tuple[int, ...]) -> None:
        self.batch = len(codes)
        self.count = count
        self.size = size
        held = by_cell(codes, size)
        self.voxels = held.shape[1]
        self._bits = min(MOST_SIDE_BY_SIDE, max(1, held.shape[2] // count).bit_length() - 1)
        side = torch.arange(held.shape[2], device=codes.device) % (1 << self._bits)
        # (B, f, cells): the partial sum to which each voxel is added
        self._slots = (held.long() << self._bits) + side

    def mass(self) -> Tensor:
        return self.sums(torch.ones((self.batch, 1, *self.size), device=self._slots.device))[..., 0]

    def sums(self, features: Tensor, weights: Tensor | None = None) -> Tensor:
        sums = features.new_zeros((*features.shape[:2], self.count << self._bits), dtype=torch.float32)
        for samples, channels in channel_blocks(features):
            values = features[samples, channels].flatten(2).float()
            if weights is not None:
                values = values * weights[samples].flatten(1).unsqueeze(1)
            for slots in self._slots[samples].unbind(dim=1):
                sums[samples, channels].scatter_add_(2, slots.unsqueeze(1).expand(values.shape), values)
        return self._add_up(sums)

    def spread(self, values: Tensor) -> Tensor:
        first, *others = self._slots.unbind(dim=1)
        maps = self._look_up(values.mT, first)
        for slots in others:
            maps += self._look_up(values.mT, slots)
        return maps.mul_(1 / self.voxels).unflatten(2, self.size)

    def project(self, values: Tensor, features: Tensor) -> Tensor:
        maps = values.new_zeros((self.batch, math.prod(self.size)))
        for samples, channels in channel_blocks(features):
            part, of_codes = features[samples, channels].flatten(2), values[samples, :, channels].mT
            for slots in self._slots[samples].unbind(dim=1):
                maps[samples] += self._look_up(of_codes, slots).mul_(part).sum(dim=1)
        return maps.mul_(1 / self.voxels).unflatten(1, self.size)

    def _add_up(self, sums: Tensor) -> Tensor:
        """Add up the partial sums, ``(B, C, all sums)`` to ``(B, U, C)``, in units of cells instead of voxels."""
        return sums.unflatten(2, (self.count, -1)).sum(dim=3).mT * (1 / self.voxels)

    def _look_up(self, values: Tensor, slots: Tensor) -> Tensor:
        """The value of each cell's code: ``(B, C, U)`` and ``(B, cells)`` to ``(B, C, cells)``."""
        codes = (slots >> self._bits).unsqueeze(1)
        return values.gather(2, codes.expand(-1, values.shape[1], -1))


def by_cell(codes: Tensor, size: tuple[int, ...]) -> Tensor:
    """Rearrange ``(B, *S)`` to ``(B, voxels of a cell, cells)``."""
    pairs = [n for fine, coarse in zip(codes.shape[1:], size, strict=True) for n in (coarse, fine // coarse)]
    # the cells last: in the other order the copy takes ten times as long
    order = [0, *range(2, len(pairs) + 1, 2), *range(1, len(pairs) + 1, 2)]
    return codes.reshape(len(codes), *pairs).permute(order).reshape(len(codes), -1, math.prod(size))
