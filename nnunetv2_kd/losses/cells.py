"""Sums over the voxels of every region, for any number of regions, in little more than one reading of the features.

The voxels are taken in blocks of neighbours. A block holds few of all regions, so that the sums over its regions are a
small matrix product of its features with the memberships in *its* regions: the time does not depend on how many
regions there are elsewhere, and the memberships are only ever spelt out for a few blocks at a time.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK = 2048  # cells; smaller ones hold fewer regions, larger ones make larger matrix products
FEW_COMPARISONS = 32  # up to which comparing is faster than scattering
CELLS_AT_ONCE = {"cpu": 2**15}  # what a core's cache holds; on a GPU as much as keeps it busy
CELLS_AT_ONCE_ELSEWHERE = 2**18


class Cells:
    """The cells of one grid, in blocks, and which codes each block holds.

    Args:
        codes: ``(B, *S)`` long, in ``[0, count)``.
        count: number of codes ``U``.
        size: the grid ``(*S')``; ``S`` must be a multiple of it. A cell is made of ``f`` voxels.

    Raises:
        ValueError: where the grid does not divide the codes' own.
    """

    def __init__(self, codes: Tensor, count: int, size: tuple[int, ...]) -> None:
        own = tuple(codes.shape[1:])
        require_divides(size, own)
        self.size = size
        self.count = count
        self.volume = math.prod(size)
        self.voxels = math.prod(own) // self.volume
        self.block = block_size(self.volume)
        self._at_once = max(1, CELLS_AT_ONCE.get(codes.device.type, CELLS_AT_ONCE_ELSEWHERE) // self.block)
        # half as wide, and faster to rearrange; not 16 bits, in which a code out of range would wrap into it
        self._samples = [self._of_sample(by_cell(sample, size)) for sample in codes.to(torch.int32)]

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
        """How many cells have each code, ``(B, U)`` float32."""
        return torch.stack([sample[3] for sample in self._samples]).float() / self.voxels

    def chunks(self, sample: int) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """A few blocks at a time: which, their codes ``(n, R)`` and the memberships in them ``(n, R, cells)``."""
        places, codes, held, _ = self._samples[sample]
        for start in range(0, len(places), self._at_once):
            blocks = slice(start, start + self._at_once)
            most = max(held[blocks])
            yield blocks, codes[blocks, :most], shares_of_cells(places[blocks], most)

    def in_blocks(self, features: Tensor) -> Tensor:
        """``(B, C, *S')`` as ``(B, blocks, cells of a block, C)``, without a copy."""
        return features.flatten(2).unflatten(2, (-1, self.block)).movedim(1, 3)


def require_divides(size: tuple[int, ...], own: tuple[int, ...]) -> None:
    """Raises: ValueError where a grid does not divide the regions' own."""
    if len(own) != len(size) or any(fine % coarse for fine, coarse in zip(own, size, strict=True)):
        raise ValueError(f"expected a grid that divides that of the regions, {own}, got {size}")


def shares_of_cells(places: Tensor, count: int) -> Tensor:
    """``(n, f, cells)`` as ``(n, count, cells)`` float32: which share of each cell's ``f`` voxels is at each place."""
    blocks, voxels, cells = places.shape
    shares = torch.zeros((blocks, count, cells), device=places.device)
    if voxels > 1 and voxels * count > FEW_COMPARISONS:
        share = torch.tensor(1 / voxels, device=places.device).expand(places.shape)
        return shares.scatter_add_(1, places.long(), share)
    slots = torch.arange(count, dtype=places.dtype, device=places.device).view(1, -1, 1)
    # straight into float32: several times as fast as through a boolean
    if voxels == 1:
        return torch.eq(places, slots, out=shares)
    for voxel in places.unsqueeze(2).unbind(dim=1):
        shares += torch.eq(voxel, slots, out=torch.empty_like(shares))
    return shares.mul_(1 / voxels)


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


def region_sums(features: Tensor, cells: Cells) -> Tensor:
    """``sum_v w_u(v) F(v)``, ``w_u(v)`` the share of cell ``v`` that has code ``u``.

    Args:
        features: ``(B, C, *S')``, any floating dtype; summed in float32.
        cells: of that grid.

    Returns:
        ``(B, U, C)`` float32.
    """
    return _Sums.apply(features, cells)


def spread(values: Tensor, cells: Cells) -> Tensor:
    """``sum_u w_u(v) values_u`` at every cell: the adjoint of `region_sums`.

    Args:
        values: ``(B, U, C)`` float32.
        cells: of the grid wanted.

    Returns:
        ``(B, C, *S')`` float32.
    """
    return _Spread.apply(values, cells)


def project(values: Tensor, features: Tensor, cells: Cells) -> Tensor:
    """``sum_u w_u(v) <values_u, F(v)>`` at every cell: `spread` times the features, summed over channels, without a map
    of as many channels.

    Args:
        values: ``(B, U, C)`` float32.
        features: ``(B, C, *S')``, any floating dtype.
        cells: of that grid.

    Returns:
        ``(B, *S')`` float32.
    """
    return _Project.apply(values, features, cells)


def _sums(features: Tensor, cells: Cells) -> Tensor:
    batch, channels = features.shape[:2]
    blocks_of = cells.in_blocks(features.detach())
    sums = torch.zeros((batch, cells.count + 1, channels), device=features.device)  # the last row: filled-up slots
    for sample in range(batch):
        for blocks, codes, weights in cells.chunks(sample):
            products = weights @ blocks_of[sample, blocks].float()
            sums[sample].index_add_(0, codes.flatten(), products.flatten(0, 1))
    return sums[:, :-1]


def _spread(values: Tensor, cells: Cells) -> Tensor:
    batch, _, channels = values.shape
    values = _with_filler(values.detach())
    maps = values.new_empty((batch, channels, *cells.size))
    blocks_of = cells.in_blocks(maps)
    for sample in range(batch):
        for blocks, codes, weights in cells.chunks(sample):
            # (n, C, R) @ (n, R, cells) straight into the maps, which keep the cells of a channel together
            torch.bmm(values[sample][codes].mT, weights, out=blocks_of[sample, blocks].mT)
    return maps


class _Sums(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, cells: Cells) -> Tensor:
        ctx.cells, ctx.dtype = cells, features.dtype
        return _sums(features, cells)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _spread(gradient, ctx.cells).to(ctx.dtype), None


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, cells: Cells) -> Tensor:
        ctx.cells = cells
        return _spread(values, cells)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _sums(gradient, ctx.cells), None


class _Project(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, features: Tensor, cells: Cells) -> Tensor:
        ctx.save_for_backward(values, features)
        ctx.cells = cells
        values, blocks_of = _with_filler(values), cells.in_blocks(features)
        maps = values.new_empty((len(features), *cells.size))
        of_maps = cells.in_blocks(maps.unsqueeze(1))[..., 0]
        for sample in range(len(features)):
            for blocks, codes, weights in cells.chunks(sample):
                products = values[sample][codes] @ blocks_of[sample, blocks].float().mT  # (n, R, cells)
                of_maps[sample, blocks] = products.mul_(weights).sum(dim=1)
        return maps

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        values, features = ctx.saved_tensors
        cells = ctx.cells
        values, blocks_of = _with_filler(values), cells.in_blocks(features)
        of_values = torch.zeros_like(values)
        # not in the strides of the features, of which blocks may be a copy
        of_features = torch.empty_like(features, memory_format=torch.contiguous_format)
        of_blocks, gradients = cells.in_blocks(of_features), cells.in_blocks(gradient.contiguous().unsqueeze(1))[..., 0]
        for sample in range(len(features)):
            for blocks, codes, weights in cells.chunks(sample):
                weighted = weights * gradients[sample, blocks].unsqueeze(1)
                products = weighted @ blocks_of[sample, blocks].float()
                of_values[sample].index_add_(0, codes.flatten(), products.flatten(0, 1))
                of_blocks[sample, blocks] = (values[sample][codes].mT @ weighted).mT.to(features.dtype)
        return of_values[:, :-1], of_features, None


def _with_filler(values: Tensor) -> Tensor:
    """With a row of 0 for the slots that are filled up."""
    return torch.cat((values, values.new_zeros((len(values), 1, values.shape[2]))), dim=1)
