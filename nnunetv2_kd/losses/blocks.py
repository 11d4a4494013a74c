"""Sums over regions on an accelerator, as small matrix products.

The voxels are taken in blocks of neighbours. A block holds few of all regions, so that the sums over its regions are a
small matrix product of its features with the memberships in *its* regions: the time does not depend on how many
regions there are elsewhere, and the memberships are only ever spelt out for a few blocks at a time.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

BLOCK = 2048  # cells; smaller ones hold fewer regions, larger ones make larger matrix products
FEW_COMPARISONS = 32  # up to which comparing is faster than scattering
CELLS_AT_ONCE = 2**18  # as much as keeps a GPU busy


class Blocks:
    """See `nnunetv2_kd.losses.cells.Cells`; arguments as for `cells_of`."""

    def __init__(self, codes: Tensor, count: int, size: tuple[int, ...]) -> None:
        self.batch = len(codes)
        self.count = count
        self.size = size
        self.voxels = math.prod(codes.shape[1:]) // math.prod(size)
        self.block = block_size(math.prod(size))
        self._at_once = max(1, CELLS_AT_ONCE // self.block)
        self._samples = [self._of_sample(by_cell(sample, size)) for sample in codes]

    def _of_sample(self, codes: Tensor) -> tuple[Tensor, Tensor, list[int], Tensor]:
        """From ``(f, cells)``: per block the place of every voxel's code among the block's codes ``(blocks, f, cells of
        a block)``; those codes ``(blocks, R)``, filled up with ``U``; how many there are, on the host; and how many
        voxels have each code ``(U,)``."""
        voxels = (
            codes.unflatten(1, (-1, self.block)).movedim(1, 0).long(memory_format=torch.contiguous_format).flatten(1)
        )
        counts = torch.zeros((len(voxels), self.count), dtype=torch.int32, device=codes.device)
        counts.scatter_add_(1, voxels, torch.ones_like(counts[:1, :1]).expand_as(voxels))
        held = counts > 0
        place = held.cumsum(dim=1) - 1
        most = held.sum(dim=1)
        held_codes = torch.full((len(voxels), int(most.max())), self.count, device=codes.device)
        block, code = held.nonzero(as_tuple=True)
        held_codes[block, place[block, code]] = code
        places = place.to(torch.int16).gather(1, voxels).view(len(voxels), self.voxels, self.block)
        return places, held_codes, most.tolist(), counts.sum(dim=0)

    def mass(self) -> Tensor:
        return torch.stack([sample[3] for sample in self._samples]).float() / self.voxels

    def sums(self, features: Tensor, weights: Tensor | None = None) -> Tensor:
        blocks_of = self._in_blocks(features)
        # the last row: slots that are filled up
        sums = features.new_zeros((len(features), self.count + 1, features.shape[1]), dtype=torch.float32)
        for sample in range(len(features)):
            scale = None if weights is None else self._in_blocks(weights[sample : sample + 1].unsqueeze(1))[0, ..., 0]
            for blocks, codes, shares in self._chunks(sample):
                if scale is not None:
                    shares.mul_(scale[blocks].unsqueeze(1))
                products = shares @ blocks_of[sample, blocks].float()
                sums[sample].index_add_(0, codes.flatten(), products.flatten(0, 1))
        return sums[:, :-1]

    def spread(self, values: Tensor) -> Tensor:
        values = _with_filler(values)
        maps = values.new_empty((len(values), values.shape[2], *self.size))
        blocks_of = self._in_blocks(maps)
        for sample in range(len(values)):
            for blocks, codes, shares in self._chunks(sample):
                # (n, C, R) @ (n, R, cells) straight into the maps, which keep the cells of a channel together
                torch.bmm(values[sample][codes].mT, shares, out=blocks_of[sample, blocks].mT)
        return maps

    def project(self, values: Tensor, features: Tensor) -> Tensor:
        values, blocks_of = _with_filler(values), self._in_blocks(features)
        maps = values.new_empty((len(features), *self.size))
        of_maps = self._in_blocks(maps.unsqueeze(1))[..., 0]
        for sample in range(len(features)):
            for blocks, codes, shares in self._chunks(sample):
                products = values[sample][codes] @ blocks_of[sample, blocks].float().mT  # (n, R, cells)
                of_maps[sample, blocks] = products.mul_(shares).sum(dim=1)
        return maps

    def _chunks(self, sample: int) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """A few blocks at a time: which, their codes ``(n, R)`` and the memberships in them ``(n, R, cells)``."""
        places, codes, held, _ = self._samples[sample]
        for start in range(0, len(places), self._at_once):
            blocks = slice(start, start + self._at_once)
            most = max(held[blocks])
            yield blocks, codes[blocks, :most], shares_of_cells(places[blocks], most)

    def _in_blocks(self, features: Tensor) -> Tensor:
        """``(B, C, *S')`` as ``(B, blocks, cells of a block, C)``, without a copy."""
        return features.flatten(2).unflatten(2, (-1, self.block)).movedim(1, 3)


def shares_of_cells(places: Tensor, count: int) -> Tensor:
    """``(n, f, cells)`` as ``(n, count, cells)`` float32: which share of each cell's ``f`` voxels is at each place."""
    blocks, voxels, cells = places.shape
    if voxels > 1 and voxels * count > FEW_COMPARISONS:
        shares = torch.zeros((blocks, count, cells), device=places.device)
        return shares.scatter_add_(1, places.long(), shares.new_full((1, 1, 1), 1 / voxels).expand(places.shape))
    slots = torch.arange(count, dtype=places.dtype, device=places.device).view(1, -1, 1)
    # straight into float32: several times as fast as through a boolean
    shares = torch.eq(places[:, :1], slots, out=torch.empty((blocks, count, cells), device=places.device))
    for voxel in places[:, 1:].unsqueeze(2).unbind(dim=1):
        shares += torch.eq(voxel, slots, out=torch.empty_like(shares))
    return shares if voxels == 1 else shares.mul_(1 / voxels)


def block_size(volume: int) -> int:
    """The largest divisor of a grid's number of cells up to `BLOCK`; all cells where only tiny divisors are left."""
    largest = next(n for n in range(min(BLOCK, volume), 0, -1) if volume % n == 0)
    return largest if largest >= BLOCK // 16 else volume


def by_cell(codes: Tensor, size: tuple[int, ...]) -> Tensor:
    """``(*S)`` as ``(voxels of a cell, cells)``."""
    pairs = [n for fine, coarse in zip(codes.shape, size, strict=True) for n in (coarse, fine // coarse)]
    # the cells last: the other way round the copy takes ten times as long
    order = [*range(1, len(pairs), 2), *range(0, len(pairs), 2)]
    return codes.reshape(pairs).permute(order).reshape(-1, math.prod(size))


def _with_filler(values: Tensor) -> Tensor:
    """With a row of 0 for the slots that are filled up."""
    return torch.cat((values, values.new_zeros((len(values), 1, values.shape[2]))), dim=1)
