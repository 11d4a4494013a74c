"""The loops of `nnunetv2_kd.inference.labels`, compiled by numba.

The interpolation is exactly ``scipy.ndimage.zoom(order=1, mode="nearest", grid_mode=True)``, which scikit-image's
``resize`` calls: the same products and sums in double precision, in the same order.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from nnunetv2_kd.tensors.compiled import compiled_once

Array: TypeAlias = NDArray[Any]
UNDECIDED = 255  # no label
ROUNDING = 2.0**-9  # relative; twice the spacing of half-precision numbers, which have 11 binary digits


def compile_kernel(function: Callable) -> Callable:
    return compiled_once(function, nogil=True, error_model="numpy")  # no fastmath, because the order of sums matters


def in_threads(work: Callable[[int], None], items: Sequence[int], threads: int) -> None:
    """Call a function that releases Python's GIL with every item."""
    if threads == 1 or len(items) == 1:
        for item in items:
            work(item)
        return
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, items))


def linear_weights(have: int, want: int) -> tuple[Array, Array, Array]:
    """For resampling an axis from ``have`` to ``want`` places: at each new place, the old index below, the old index
    above, and the weight of the one above."""
    # as in SciPy's NI_ZoomShift, where the zoom is the quotient of the sizes
    zoom = have / want
    places = (np.arange(want, dtype=np.float64) + 0.5) * zoom - 0.5
    places = np.clip(places, 0, have - 1)
    below = np.floor(places)
    return (
        below.astype(np.int64),
        np.minimum(below + 1, have - 1).astype(np.int64),
        places - below,
    )


@compile_kernel
def largest_two(values: Array) -> tuple[Array, Array, Array]:
    """At every voxel of ``(K, D, H, W)`` float32: the index of the largest value (uint8; the first, if equal), its lead
    over the second largest, and the largest absolute value."""
    classes, depth, height, width = values.shape
    best = np.zeros((depth, height, width), np.uint8)
    margin = np.empty((depth, height, width), np.float32)
    size = np.empty((depth, height, width), np.float32)
    first = np.empty(width, np.float32)
    second = np.empty(width, np.float32)
    for z in range(depth):
        for y in range(height):
            for x in range(width):
                first[x] = values[0, z, y, x]
                second[x] = -np.inf
                size[z, y, x] = abs(first[x])
            for k in range(1, classes):
                for x in range(width):
                    value = values[k, z, y, x]
                    size[z, y, x] = max(size[z, y, x], abs(value))
                    if value > first[x]:
                        second[x] = first[x]
                        first[x] = value
                        best[z, y, x] = k
                    elif value > second[x]:
                        second[x] = value
            for x in range(width):
                margin[z, y, x] = first[x] - second[x]
    return best, margin, size


@compile_kernel
def decide(
    best: Array,
    margin: Array,
    size: Array,
    z0: Array,
    z1: Array,
    wz: Array,
    y0: Array,
    y1: Array,
    wy: Array,
    x0: Array,
    x1: Array,
    wx: Array,
    out: Array,
) -> int:
    """Write the class that wins at all eight corners of a voxel into ``out``, or UNDECIDED; returns how
    many are UNDECIDED."""
    undecided = 0
    for z in range(out.shape[0]):
        for y in range(out.shape[1]):
            for x in range(out.shape[2]):
                label = best[z0[z], y0[y], x0[x]]
                same = True
                least = np.float32(np.inf)
                most = np.float32(0)
                for corner in range(8):
                    cz = z1[z] if corner & 4 else z0[z]
                    cy = y1[y] if corner & 2 else y0[y]
                    cx = x1[x] if corner & 1 else x0[x]
                    same = same and best[cz, cy, cx] == label
                    least = min(least, margin[cz, cy, cx])
                    most = max(most, size[cz, cy, cx])
                if same and least > ROUNDING * most + 1e-6:
                    out[z, y, x] = label
                else:
                    out[z, y, x] = UNDECIDED
                    undecided += 1
    return undecided


@compile_kernel
def interpolate_undecided(
    values: Array,
    places: Array,
    z0: Array,
    z1: Array,
    wz: Array,
    y0: Array,
    y1: Array,
    wy: Array,
    x0: Array,
    x1: Array,
    wx: Array,
) -> Array:
    """``(K, n)`` float64: the values ``(K, D, H, W)`` at ``n`` places ``(n, 3)``."""
    found = np.empty((values.shape[0], places.shape[0]), np.float64)
    for n in range(places.shape[0]):
        z, y, x = places[n]
        for k in range(values.shape[0]):
            total = 0.0
            for corner in range(8):
                value = np.float64(
                    values[
                        k,
                        z1[z] if corner & 4 else z0[z],
                        y1[y] if corner & 2 else y0[y],
                        x1[x] if corner & 1 else x0[x],
                    ]
                )
                value *= wz[z] if corner & 4 else 1 - wz[z]
                value *= wy[y] if corner & 2 else 1 - wy[y]
                value *= wx[x] if corner & 1 else 1 - wx[x]
                total += value
            found[k, n] = total
    return found
