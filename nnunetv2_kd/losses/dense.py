"""Sums over regions on an accelerator, where the memberships are small enough to be spelt out."""

import math

import torch
from torch import Tensor

from nnunetv2_kd.losses.powers import few_channels
from nnunetv2_kd.losses.products import over_voxels
from nnunetv2_kd.losses.scattered import by_cell

MOST_SHARES = 2**24  # of a batch, 64 MiB


def fits(codes: Tensor, count: int, size: tuple[int, ...]) -> bool:
    """Whether the memberships of a grid take at most 64 MiB; arguments as for `Dense`."""
    return len(codes) * count * math.prod(size) <= MOST_SHARES


class Dense:
    """See `nnunetv2_kd.losses.cells.Cells`; arguments as for `cells_of`.

    A few calls for a whole batch and nothing that the host must wait for: a small training step on a GPU takes as long
    as it takes to launch it.
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
        for samples, channels in few_channels(features):
            sums[samples, :, channels] = over_voxels(shares[samples], features[samples, channels].flatten(2).float())
        return sums

    def spread(self, values: Tensor) -> Tensor:
        return (values.mT @ self._shares).unflatten(2, self.size)

    def project(self, values: Tensor, features: Tensor) -> Tensor:
        of_codes = torch.zeros_like(self._shares)
        for samples, channels in few_channels(features):
            of_codes[samples].baddbmm_(values[samples, :, channels], features[samples, channels].flatten(2).float())
        return of_codes.mul_(self._shares).sum(dim=1).unflatten(1, self.size)
