"""From logits at the network's spacing to a segmentation of the image, equal to nnU-Net's at every voxel.

nnU-Net resamples the logits of every class to the image's size in double precision, rounds them to half precision, and
takes the largest; for overlapping regions, it takes those whose sigmoid is above 0.5. If the resampling is linear, this
is computed only where it is needed: a class that wins by more than the rounding at all corners around a voxel also wins
at the voxel.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from .model import Configuration, Model
from .preprocessing import Frame
from .resampling import KNOWN, nearest_slices, resample, slice_axis
from .scratch import Stack

Array = NDArray[Any]
ROUNDING = 2.0**-9  # half precision has 11 bits; twice the relative distance between neighbouring numbers
ABOVE_HALF = np.float16(2.0**-23)  # the smallest half-precision number whose sigmoid, in single precision, is above 0.5
SLAB_BYTES = 8e6  # of one class in single precision, processed at a time: larger arrays get new memory pages every time


def segmentation(logits: Stack, model: Model, configuration: Configuration, frame: Frame) -> Array:
    """The segmentation of the image, in its shape and order of axes.

    Args:
        logits: per class ``(*S)`` float16.
    """
    inside = _Resampled(logits, configuration, frame).decide(model.region_values)
    return in_image(inside, frame, configuration.transpose_backward, len(model.foreground_labels))


def in_image(inside: Array, frame: Frame, axes: Sequence[int], labels: int) -> Array:
    """Place the segmentation of the nonzero box into the full image, in the image's order of axes."""
    whole: Array = np.zeros(frame.shape, dtype=np.uint8 if labels < 255 else np.uint16)
    whole[frame.window] = inside
    return whole.transpose(axes)


def add_probabilities(logits: Stack, model: Model, configuration: Configuration, frame: Frame, total: Stack) -> None:
    """Add a model's probabilities to a total, in the image's shape and order of axes.

    Args:
        total: per class ``(Z, Y, X)`` float32.
    """
    resampled = _Resampled(logits, configuration, frame)
    window = tuple(frame.window[axis] for axis in configuration.transpose_backward)
    if model.region_values is not None:
        for number in range(len(total)):
            values = resampled.whole(number).astype(np.float32).transpose(configuration.transpose_backward)
            here = total[number][window]
            with np.errstate(over="ignore"):  # 1 / infinity is 0, as it should be
                here += 1 / (1 + np.exp(-values))
        return
    shape = tuple(part.stop - part.start for part in window)
    largest: Array = np.full(shape, -np.inf, dtype=np.float32)
    for number in range(len(total)):
        np.maximum(largest, resampled.whole(number).transpose(configuration.transpose_backward), out=largest)
    summed: Array = np.zeros(shape, dtype=np.float32)
    for number in range(len(total)):
        values = resampled.whole(number).astype(np.float32).transpose(configuration.transpose_backward)
        summed += np.exp(values - largest)
    for number in range(len(total)):
        values = resampled.whole(number).astype(np.float32).transpose(configuration.transpose_backward)
        here = total[number]
        added = np.zeros(here.shape, dtype=np.float32)
        added += 1 if number == 0 else 0  # outside of the nonzero box, everything is background
        added[window] = np.exp(values - largest) / summed
        here += added


def segmentation_from_probabilities(total: Stack, models: int, model: Model) -> Array:
    """The segmentation from the mean of several models' probabilities."""
    means = (total[number] / np.float32(models) for number in range(len(total)))
    regions = model.region_values
    found = _largest(means) if regions is None else _regions(means, regions, lambda values: values > 0.5)
    return found.astype(np.uint8 if len(model.foreground_labels) < 255 else np.uint16)


def keep_largest(segmented: Array, rules: Sequence[Any]) -> Array:
    """nnU-Net's postprocessing: for every rule, voxels of its labels outside of their largest component become 0.

    Args:
        rules: each is a label, a region as a list of labels, or a list of both.
    """
    found = segmented.copy()
    for rule in rules:
        labels = np.unique([value for part in np.atleast_1d(np.array(rule, dtype=object)) for value in np.ravel(part)])
        mask = np.isin(found, labels.astype(found.dtype))
        components, count = ndimage.label(mask, structure=np.ones((3,) * mask.ndim))
        if count > 1:
            sizes = np.bincount(components.ravel())[1:]
            found[mask & ~np.isin(components, np.flatnonzero(sizes == sizes.max()) + 1)] = 0
    return found


class _Resampled:
    """Logits at the image's spacing, cropped to the nonzero box."""

    def __init__(self, logits: Stack, configuration: Configuration, frame: Frame) -> None:
        self._logits = logits
        self._rule = configuration.resample_logits
        self._shape = frame.cropped
        self._spacing = frame.network_spacing, frame.spacing
        changes = logits.shape != self._shape and self._rule.function == KNOWN[0]
        self._axis = slice_axis(self._rule, *self._spacing) if changes else None
        across = self._axis is not None and logits.shape[self._axis] != self._shape[self._axis]
        self._is_linear = (
            changes and self._rule.order == 1 and (not across or self._rule.order_z == 0)
        ) or logits.shape == self._shape

    def whole(self, number: int) -> Array:
        """One class, ``(*S)`` float16, fully resampled."""
        values = np.asarray(self._logits[number]).astype(np.float32)
        return resample(values, self._shape, self._rule, *self._spacing).astype(np.float16)

    def decide(self, regions: Sequence[int] | None) -> Array:
        """The index of the largest class; with regions, the value that is written last."""
        if not self._is_linear:
            classes = (self.whole(number) for number in range(len(self._logits)))
            return _largest(classes) if regions is None else _regions(classes, regions, _is_inside)
        shape = list(self._shape)
        if self._axis is not None:  # slices are picked when they are decided
            shape[self._axis] = self._logits.shape[self._axis]
        found: Array = np.zeros(shape, dtype=np.uint16 if len(self._logits) > 255 or regions else np.uint8)
        corners = [_corners(have, want) for have, want in zip(self._logits.shape, shape, strict=True)]
        rows = max(1, int(SLAB_BYTES / (4 * np.prod(shape[1:]))))
        for start in range(0, shape[0], rows):
            stop = min(start + rows, shape[0])
            below, above, places = (part[start:stop] for part in corners[0])
            first, last = int(below.min()), int(above.max()) + 1
            here = [(below - first, above - first, places - first), *corners[1:]]
            source = _Rows(self._logits, first, last)
            found[start:stop] = (
                _slab_of_largest(source, here) if regions is None else _slab_of_regions(source, here, regions)
            )
        if self._axis is not None and found.shape != self._shape:
            picked = nearest_slices(found.shape[self._axis], self._shape[self._axis])
            found = np.take(found, picked, axis=self._axis)
        return found


class _Rows:
    """Some rows of all classes, in single precision."""

    def __init__(self, logits: Stack, first: int, last: int) -> None:
        self._logits, self._first, self._last = logits, first, last

    def __len__(self) -> int:
        return len(self._logits)

    def __getitem__(self, number: int) -> Array:
        return np.asarray(self._logits[number][self._first : self._last]).astype(np.float32)


Corners = tuple[Array, Array, Array]


def _corners(have: int, want: int) -> Corners:
    """For ``want`` positions along an axis of ``have`` voxels: the index below, the index above, and the fraction
    between, as in ``scipy.ndimage.zoom(grid_mode=True, mode="nearest")``."""
    places = np.clip((np.arange(want, dtype=np.float64) + 0.5) * (have / want) - 0.5, 0, have - 1)
    below = np.floor(places).astype(np.int64)
    return below, np.ceil(places).astype(np.int64), places


def _over_cells(values: Array, corners: Sequence[Corners], combine: Callable[..., Array]) -> Array:
    """Combine the values at the corners of every cell, from each voxel to the next one, along the axes
    that are resampled."""
    for axis, (below, above, _) in enumerate(corners):
        if (above != below).any():
            following = np.minimum(np.arange(1, values.shape[axis] + 1), values.shape[axis] - 1)
            values = combine(values, np.take(values, following, axis))
    return values


def _interpolate(values: Array, open_: Sequence[Array], corners: Sequence[Corners]) -> Array:
    """Linear interpolation at some positions of a slab, rounded to half precision."""
    where = np.stack([places[index] for (_, _, places), index in zip(corners, open_, strict=True)])
    found: Array = ndimage.map_coordinates(values, where, output=np.float64, order=1, mode="nearest")
    return found.astype(np.float16)


def _slab_of_largest(source: _Rows, corners: Sequence[Corners]) -> Array:
    first = source[0]
    winner = np.zeros(first.shape, dtype=np.uint16)
    second = np.full(first.shape, -np.inf, dtype=np.float32)
    size = np.abs(first)
    surest = _over_cells(first, corners, np.minimum).copy()  # some class is above this everywhere in the cell
    for number in range(1, len(source)):
        values = source[number]
        np.maximum(size, np.abs(values), out=size)
        np.maximum(surest, _over_cells(values, corners, np.minimum), out=surest)
        better = values > first
        np.maximum(second, np.where(better, first, values), out=second)
        np.copyto(first, values, where=better)
        winner[better] = number
    if first.shape == tuple(len(below) for below, _, _ in corners):
        return winner
    rounding = ROUNDING * _over_cells(size, corners, np.maximum) + 1e-6
    is_open = _over_cells(winner, corners, np.minimum) != _over_cells(winner, corners, np.maximum)
    is_open |= _over_cells(first - second, corners, np.minimum) <= rounding
    cells = np.ix_(*(below for below, _, _ in corners))
    out: Array = winner[cells]
    open_ = np.nonzero(is_open[cells])
    if len(open_[0]):
        cell = np.ravel_multi_index([below[i] for (below, _, _), i in zip(corners, open_, strict=True)], first.shape)
        surest -= rounding
        out[open_] = _largest_of_candidates(source, open_, cell, surest, corners)
    return out


def _largest_of_candidates(
    source: _Rows, open_: Sequence[Array], cell: Array, surest: Array, corners: Sequence[Corners]
) -> Array:
    """The index of the first largest class at some positions, among the classes that can be the largest in their cell.

    Args:
        open_: indices of the positions in the slab.
        cell: of every position, in the flattened slab of source voxels.
        surest: per cell, a value; a class that stays below it is not the largest.
    """
    best: Array = np.full(len(cell), -np.inf, dtype=np.float16)
    found: Array = np.zeros(len(cell), dtype=np.uint16)
    for number in range(len(source)):
        values = source[number]
        is_candidate = _over_cells(values, corners, np.maximum) >= surest
        there = np.flatnonzero(np.take(is_candidate, cell))
        if len(there):
            here = _interpolate(values, [index[there] for index in open_], corners)
            better = here > best[there]
            best[there[better]] = here[better]
            found[there[better]] = number
    return found


def _slab_of_regions(source: _Rows, corners: Sequence[Corners], regions: Sequence[int]) -> Array:
    out: Array = np.zeros(tuple(len(below) for below, _, _ in corners), dtype=np.uint16)
    cells = np.ix_(*(below for below, _, _ in corners))
    for number, label in enumerate(regions):
        values = source[number]
        if values.shape == out.shape:
            out[_is_inside(values)] = label
            continue
        lowest, highest = (_over_cells(values, corners, combine) for combine in (np.minimum, np.maximum))
        inside = (lowest > 1e-6)[cells]
        open_ = np.nonzero(((lowest <= 1e-6) & (highest > 0))[cells])
        inside[open_] = _is_inside(_interpolate(values, open_, corners))
        out[inside] = label
    return out


def _largest(classes: Iterable[Array]) -> Array:
    """The index of the first largest."""
    best, winner = None, np.zeros(0, dtype=np.uint16)
    for number, values in enumerate(classes):
        if best is None:
            best, winner = values.copy(), np.zeros(values.shape, dtype=np.uint16)
            continue
        better = values > best
        np.copyto(best, values, where=better)
        winner[better] = number
    return winner


def _regions(classes: Iterable[Array], regions: Sequence[int], is_inside: Callable[[Array], Array]) -> Array:
    """The value of the last region that contains the voxel."""
    out = None
    for values, label in zip(classes, regions, strict=True):
        if out is None:
            out = np.zeros(values.shape, dtype=np.uint16)
        out[is_inside(values)] = label
    return np.zeros(0, dtype=np.uint16) if out is None else out


def _is_inside(logits: Array) -> Array:
    """Whether the sigmoid is above 0.5."""
    return logits >= ABOVE_HALF
