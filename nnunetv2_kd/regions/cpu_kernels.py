"""The loops of `nnunetv2_kd.regions.cpu_sums`, compiled by numba at their first call and cached on disk if possible.

A run has a ``first`` cell, a ``last`` (one past the end), a ``code`` and a ``share``. The share is below 1 only for a
single cell that holds several codes; it then has one run per code, all with the same ``first``. Indices are unsigned,
because numba does not vectorise loops over indices that may be negative. Every function is compiled for one set of
types only: processes that compile it for two at the same time could mix them up in the cache.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from nnunetv2_kd.tensors.compiled import compiled_once

LONGEST = 4096  # cells of a run: a float32 sum over more would lose digits

Array: TypeAlias = NDArray[Any]


def compile_kernel(function: Callable) -> Callable:
    # additions may be reordered, which allows vectorisation; NaN and infinity keep their meaning
    return compiled_once(function, nogil=True, fastmath={"reassoc", "contract", "nsz"}, error_model="numpy")


@compile_kernel
def find_runs(codes: Array, count: int, factors: tuple[int, int, int]) -> tuple[Array, Array, Array, Array]:
    """The runs of codes ``(D, H, W)`` in ``[0, count)``, given a cell's voxels along each axis: ``first``, ``last``,
    ``code`` uint32 and ``share`` float32, sorted by ``first``, a cell's index. ValueError for a code out of range."""
    first = np.empty(codes.size, np.uint32)
    last = np.empty(codes.size, np.uint32)
    code = np.empty(codes.size, np.uint32)
    share = np.empty(codes.size, np.float32)
    fd, fh, fw = factors
    voxels = fd * fh * fw
    held: Array = np.empty(voxels, np.int64)
    times: Array = np.empty(voxels, np.int64)
    unlike = np.empty(codes.shape[2], np.int64)
    runs, cell = 0, 0
    whole = False  # whether more cells can join the last run
    for d in range(0, codes.shape[0], fd):
        for h in range(0, codes.shape[1], fh):
            # marks the voxels that differ from those in the first of the cells' rows; whole rows at once are fast
            unlike[:] = 0
            for i in range(d, d + fd):
                for j in range(h, h + fh):
                    if i == d and j == h:
                        continue
                    for k in range(codes.shape[2]):
                        unlike[k] |= codes[i, j, k] ^ codes[d, h, k]
            for w in range(0, codes.shape[2], fw):
                one, several = codes[d, h, w], unlike[w]
                for k in range(w + 1, w + fw):
                    several |= unlike[k] | (codes[d, h, k] ^ one)
                if whole and several == 0 and one == code[runs - 1] and cell - first[runs - 1] < LONGEST:
                    last[runs - 1] = cell + 1
                    cell += 1
                    continue
                # the cell's codes, and how many of its voxels have each; the previous voxel's is the likeliest
                held[0], times[0], kinds, at = one, 0, 1, 0
                for i in range(d, d + fd):
                    for j in range(h, h + fh):
                        for k in range(w, w + fw):
                            if codes[i, j, k] != held[at]:
                                at = 0
                                while at < kinds and held[at] != codes[i, j, k]:
                                    at += 1
                                if at == kinds:
                                    held[at], times[at] = codes[i, j, k], 0
                                    kinds += 1
                            times[at] += 1
                for at in range(kinds):
                    if held[at] < 0 or held[at] >= count:
                        raise ValueError("expected labels in [0, number of classes), found another")
                    first[runs], last[runs] = cell, cell + 1
                    code[runs], share[runs] = held[at], times[at] / voxels
                    runs += 1
                whole = kinds == 1
                cell += 1
    return first[:runs].copy(), last[:runs].copy(), code[:runs].copy(), share[:runs].copy()


@compile_kernel
def sums(features: Array, weights: Array, first: Array, last: Array, code: Array, share: Array, count: int) -> Array:
    """``sum_v w_u(v) weights(v) F(v)`` for features ``(8, V)`` and weights ``(V)``: ``(U, 8)`` float64."""
    total: Array = np.zeros((count, 8), np.float64)
    for run in range(len(first)):
        s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = np.float32(0)
        # eight sums at once: a single sum would have to wait for each addition
        for v in range(first[run], last[run]):
            w = weights[v]
            s0 += w * features[0, v]
            s1 += w * features[1, v]
            s2 += w * features[2, v]
            s3 += w * features[3, v]
            s4 += w * features[4, v]
            s5 += w * features[5, v]
            s6 += w * features[6, v]
            s7 += w * features[7, v]
        row, part = total[code[run]], share[run]
        row[0] += part * s0
        row[1] += part * s1
        row[2] += part * s2
        row[3] += part * s3
        row[4] += part * s4
        row[5] += part * s5
        row[6] += part * s6
        row[7] += part * s7
    return total


@compile_kernel
def spread(values: Array, first: Array, last: Array, code: Array, share: Array, maps: Array) -> None:
    """``sum_u w_u(v) values_u`` for values ``(C, U)``, written to maps ``(C, V)``."""
    for channel in range(len(values)):
        for run in range(len(first)):
            value = values[channel, code[run]] * share[run]
            if run > 0 and first[run] == first[run - 1]:
                maps[channel, first[run]] += value
            else:
                for v in range(first[run], last[run]):
                    maps[channel, v] = value


@compile_kernel
def add_projections(
    values: Array, features: Array, first: Array, last: Array, code: Array, share: Array, maps: Array
) -> None:
    """``sum_u w_u(v) <values_u, F(v)>`` for values ``(U, 8)`` and features ``(8, V)``, added to maps ``(V)``."""
    for run in range(len(first)):
        row, part = values[code[run]], share[run]
        a0, a1, a2, a3 = part * row[0], part * row[1], part * row[2], part * row[3]
        a4, a5, a6, a7 = part * row[4], part * row[5], part * row[6], part * row[7]
        for v in range(first[run], last[run]):
            maps[v] += (
                a0 * features[0, v]
                + a1 * features[1, v]
                + a2 * features[2, v]
                + a3 * features[3, v]
                + a4 * features[4, v]
                + a5 * features[5, v]
                + a6 * features[6, v]
                + a7 * features[7, v]
            )
