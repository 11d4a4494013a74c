"""Sums over the voxels of every region, for any number of regions, in one to three passes over the features."""

from typing import Any, Protocol

import torch
from torch import Tensor

from nnunetv2_kd.regions.accelerator_sums import DenseSums, ScatteredSums, fits_in_memory
from nnunetv2_kd.tensors.blockwise import in_float32


class GridSums(Protocol):
    """The cells of one grid ``(*S')``, each made of ``f`` voxels, and which codes they hold.

    ``w_u(v)`` is the share of cell ``v`` that has code ``u``. The methods have no gradients and do not check shapes.

    Attributes:
        batch: ``B``.
        count: number of codes ``U``.
        size: ``(*S')``.
    """

    batch: int
    count: int
    size: tuple[int, ...]

    def mass(self) -> Tensor:
        """How many cells have each code: ``sum_v w_u(v)``, ``(B, U)`` float32."""

    def sums(self, features: Tensor, weights: Tensor | None = None) -> Tensor:
        """``sum_v w_u(v) weights(v) F(v)``: ``(B, U, C)`` float32, from features ``(B, C, *S')`` of any floating dtype
        and weights ``(B, *S')`` float32 (default: 1)."""

    def spread(self, values: Tensor) -> Tensor:
        """``sum_u w_u(v) values_u``: ``(B, C, *S')`` float32, from values ``(B, U, C)`` float32."""

    def project(self, values: Tensor, features: Tensor) -> Tensor:
        """``sum_u w_u(v) <values_u, F(v)>``: ``(B, *S')`` float32, from values ``(B, U, C)`` float32 and features
        ``(B, C, *S')``."""


def grid_sums(codes: Tensor, count: int, size: tuple[int, ...]) -> GridSums:
    """The cells of a grid, in the implementation that is fast on the codes' device.

    Args:
        codes: ``(B, *S)`` int32, in ``[0, count)``.
        count: number of codes ``U``.
        size: the grid ``(*S')``; ``S`` must be a multiple of it.

    Raises:
        ValueError: if the grid does not divide that of the codes.
    """
    own = tuple(codes.shape[1:])
    if len(own) != len(size) or any(fine % coarse for fine, coarse in zip(own, size, strict=True)):
        raise ValueError(f"expected a grid that divides the regions' grid {own}, got {size}")
    if codes.device.type != "cpu":
        return (
            DenseSums(codes, count, size) if fits_in_memory(codes, count, size) else ScatteredSums(codes, count, size)
        )
    # imported only here: it loads compiled code for a second, which no other device needs
    from nnunetv2_kd.regions.cpu_sums import RunLengthSums

    return RunLengthSums(codes, count, size)


def region_sums(features: Tensor, grid: GridSums) -> Tensor:
    """`GridSums.sums`, with its gradient.

    Raises: ValueError for features of another batch or grid.
    """
    _require_features(features, grid)
    return _Sums.apply(features, grid)


def spread(values: Tensor, grid: GridSums) -> Tensor:
    """`GridSums.spread`, the adjoint of `region_sums`, with its gradient.

    Raises: ValueError for values of another batch or number of codes.
    """
    _require_values(values, grid)
    return _Spread.apply(values, grid)


def project(values: Tensor, features: Tensor, grid: GridSums) -> Tensor:
    """`GridSums.project`, with its gradients: `spread` times the features, summed over channels, without storing what
    `spread` returns.

    Raises: ValueError for values and features that do not fit the grid or each other.
    """
    _require_features(features, grid)
    _require_values(values, grid)
    if values.shape[2] != features.shape[1]:
        raise ValueError(f"expected values of {features.shape[1]} channels like the features, got {values.shape[2]}")
    return _Project.apply(values, features, grid)


def _require_features(features: Tensor, grid: GridSums) -> None:
    if (len(features), *features.shape[2:]) != (grid.batch, *grid.size):
        raise ValueError(f"expected features (B, C, *S) of B {grid.batch}, S {grid.size}, got {tuple(features.shape)}")


def _require_values(values: Tensor, grid: GridSums) -> None:
    if tuple(values.shape[:2]) != (grid.batch, grid.count):
        raise ValueError(f"expected values (B, U, C) of B {grid.batch}, U {grid.count}, got {tuple(values.shape)}")


class _Sums(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, grid: GridSums) -> Tensor:
        ctx.grid, ctx.dtype = grid, features.dtype
        return grid.sums(features)

    @staticmethod
    @in_float32
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.grid.spread(gradient).to(ctx.dtype), None


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, grid: GridSums) -> Tensor:
        ctx.grid = grid
        return grid.spread(values)

    @staticmethod
    @in_float32
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.grid.sums(gradient), None


class _Project(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, features: Tensor, grid: GridSums) -> Tensor:
        ctx.save_for_backward(values, features)
        ctx.grid = grid
        return grid.project(values, features)

    @staticmethod
    @in_float32
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        values, features = ctx.saved_tensors
        of_values, of_features = None, None
        if ctx.needs_input_grad[0]:
            of_values = ctx.grid.sums(features, weights=gradient)
        if ctx.needs_input_grad[1]:
            of_features = ctx.grid.spread(values).mul_(gradient.unsqueeze(1)).to(features.dtype)
        return of_values, of_features, None
