"""Apply the network to tiles of the image: nnU-Net's tiles, weights, mirroring and half-precision sums,
in nnU-Net's order."""

from collections.abc import Callable, Iterable, Sequence
from itertools import combinations, product
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from .errors import RunnerError
from .network import Network
from .scratch import Stack

Array = NDArray[Any]
STEP = 0.5  # share of a patch from one tile to the next
Tile = tuple[Any, ...]


def tile_places(shape: Sequence[int], patch: Sequence[int]) -> list[Tile]:
    """The tiles of a padded image, each as indices of ``(D, H, W)``; for a 2d network, slice by slice."""
    if len(patch) < len(shape):
        return [(number, *tile) for number in range(shape[0]) for tile in tile_places(shape[1:], patch)]
    steps = []
    for size, length in zip(shape, patch, strict=True):
        count = ceil((size - length) / (length * STEP)) + 1
        distance = (size - length) / (count - 1) if count > 1 else 0.0
        steps.append([int(np.round(distance * i)) for i in range(count)])
    return [tuple(slice(s, s + t) for s, t in zip(start, patch, strict=True)) for start in product(*steps)]


def gaussian_weights(patch: Sequence[int]) -> Array:
    """Weights of a patch's voxels, 10 in the middle and 0 nowhere; float16."""
    point = np.zeros(tuple(patch))
    point[tuple(size // 2 for size in patch)] = 1
    found = ndimage.gaussian_filter(point, [size / 8 for size in patch], 0, mode="constant", cval=0)
    found /= found.max() / 10
    weights: Array = found.astype(np.float32).astype(np.float16)  # rounds doubles as torch does
    weights[weights == 0] = weights[weights != 0].min()
    return weights


def pad(image: Array, patch: Sequence[int]) -> tuple[Array, tuple[slice, ...]]:
    """``(C, *S)`` padded with zeros if it is smaller than a patch, and where the image is in the result."""
    missing = [0] * (image.ndim - len(patch)) + [
        max(0, length - size) for length, size in zip(patch, image.shape[-len(patch) :], strict=True)
    ]
    around = [(count // 2, count - count // 2) for count in missing]
    place = tuple(slice(below, below + size) for (below, _), size in zip(around, image.shape, strict=True))
    return (np.pad(image, around) if any(missing) else image), place[1:]


class MirroredNetwork:
    """The mean of a network's outputs on every mirrored copy of a patch."""

    def __init__(self, network: Network, axes: Sequence[int]) -> None:
        self._network = network
        self._axes = [chosen for count in range(1, len(axes) + 1) for chosen in combinations(axes, count)]
        self._total: Array | None = None

    def __call__(self, patch: Array) -> Array:
        """``(1, C, *patch)`` to ``(1, K, *patch)``; the next call overwrites the result."""
        output = self._network(patch)
        if not self._axes:
            return output
        if self._total is None:
            self._total = np.empty_like(output)
        self._total[...] = output
        for axes in self._axes:
            along = tuple(axis + 2 for axis in axes)
            self._total += np.flip(self._network(np.ascontiguousarray(np.flip(patch, along))), along)
        self._total /= len(self._axes) + 1
        return self._total


def predict_logits(
    image: Array,
    networks: Sequence[Network],
    patch: Sequence[int],
    mirroring: Sequence[int],
    make_stack: Callable[[Sequence[int]], Stack],
    progress: Callable[[list[Tile]], Iterable[Tile]],
) -> Stack:
    """The logits of an image, averaged over the networks.

    Args:
        image: ``(C, *S)`` float32, the network's input.
        networks: one per fold.
        patch: size of a tile, in voxels.
        mirroring: axes of a patch.
        make_stack: allocates the logits of an image.
        progress: wraps the tiles of a fold, to show the progress.

    Returns:
        Per class ``(*S)`` float16.

    Raises:
        RunnerError: if the network's output is not finite, or too large for half precision.
    """
    image, inside = pad(image, patch)
    weights = gaussian_weights(patch)
    total: Stack | None = None
    for network in networks:
        found = _one_fold(image, MirroredNetwork(network, mirroring), patch, weights, make_stack, progress)
        if total is None:
            total = found
            continue
        for number in range(len(total)):
            here = total[number]
            here += found[number]
        found.close()
    if total is None:
        raise RunnerError("There is no network.")
    if len(networks) > 1:
        for number in range(len(total)):
            here = total[number]
            here /= len(networks)
    return _inside(total, inside, make_stack)


def _one_fold(
    image: Array,
    network: Network,
    patch: Sequence[int],
    weights: Array,
    make_stack: Callable[[Sequence[int]], Stack],
    progress: Callable[[list[Tile]], Iterable[Tile]],
) -> Stack:
    sums = make_stack(image.shape[1:])
    counts = np.zeros(image.shape[1:], dtype=np.float16)
    factors = weights.astype(np.float32)
    for tile in progress(tile_places(image.shape[1:], patch)):
        of_all_channels = (slice(None), *tile)
        output = network(np.ascontiguousarray(image[of_all_channels][None]))[0]
        for number in range(len(sums)):
            here = sums[number][tile]
            np.add(here, output[number] * factors, out=here, casting="same_kind")
        counts[tile] += weights
    for number in range(len(sums)):
        here = sums[number]
        with np.errstate(all="ignore"):  # checked below
            here /= counts
        if not np.isfinite(here).all():
            raise RunnerError(
                f"The network's output is not finite, or too large for half precision, in channel {number}."
            )
    return sums


def _inside(logits: Stack, place: tuple[slice, ...], make_stack: Callable[[Sequence[int]], Stack]) -> Stack:
    """Remove the padding."""
    shape = tuple(part.stop - part.start for part in place)
    if shape == logits.shape:
        return logits
    found = make_stack(shape)
    for number in range(len(found)):
        found[number][...] = logits[number][place]
    logits.close()
    return found
