"""nnU-Net's resampling, bit for bit, with scipy alone.

nnU-Net calls scikit-image's ``resize``, which calls ``scipy.ndimage.zoom`` and clips. Here this is done directly, from
single precision to single precision with doubles in between, because nnU-Net's result has single precision too. If
slices are thick, nnU-Net resamples each slice, and then along the axis of slices, by default to the nearest one.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from .errors import RunnerError
from .model import Resampling

Array = NDArray[Any]
KNOWN = ("resample_data_or_seg_to_shape", "no_resampling_hack")


def new_shape(shape: Sequence[int], old: Sequence[float], new: Sequence[float]) -> tuple[int, ...]:
    """Voxels along each axis after a change of spacing.

    >>> new_shape((40, 100, 100), (3.0, 1.0, 1.0), (1.5, 2.0, 2.0))
    (80, 50, 50)
    """
    return tuple(round(i / j * k) for i, j, k in zip(old, new, shape, strict=True))


def slice_axis(rule: Resampling, current: Sequence[float], new: Sequence[float]) -> int | None:
    """The axis of thick slices, which is resampled separately; None: all axes are resampled together."""
    if rule.force_separate_z is False:
        return None
    if rule.force_separate_z or _is_anisotropic(current, rule.threshold):
        spacing = current
    elif _is_anisotropic(new, rule.threshold):
        spacing = new
    else:
        return None
    axes = np.where(max(spacing) / np.array(spacing) == 1)[0]
    return int(axes[0]) if len(axes) == 1 else None


def _is_anisotropic(spacing: Sequence[float], threshold: float) -> bool:
    return bool(np.max(spacing) / np.min(spacing) > threshold)


def resize(image: Array, shape: Sequence[int], order: int, dtype: Any = np.float32) -> Array:
    """scikit-image's ``resize(image, shape, order, mode="edge", anti_aliasing=False)``."""
    factors = [1 / factor for factor in np.divide(image.shape, shape)]
    out = np.empty(tuple(shape), dtype=dtype)
    ndimage.zoom(image, factors, output=out, order=order, mode="nearest", grid_mode=True)
    if order > 1:  # lower orders stay within the range of their values
        np.clip(out, image.min(), image.max(), out=out)
    return out


def resample(
    image: Array, shape: Sequence[int], rule: Resampling, current: Sequence[float], new: Sequence[float]
) -> Array:
    """Resample an image ``(D, H, W)`` float32 from one spacing to another, to ``shape``."""
    if not _changes(image, shape, rule):
        return image
    axis = slice_axis(rule, current, new)
    if axis is None:
        return resize(image, shape, rule.order)
    nearest = rule.order_z == 0
    dtype = np.dtype(np.float32 if nearest else np.float64)
    slices = _slice_by_slice(image, shape, axis, dtype, lambda one, inside: resize(one, inside, rule.order, dtype))
    if slices.shape[axis] == shape[axis]:
        return slices.astype(np.float32, copy=False)
    if nearest:
        return np.take(slices, nearest_slices(slices.shape[axis], shape[axis]), axis=axis)
    return _between_slices(slices, shape, rule.order_z).astype(np.float32)


def resample_labels(
    labels: Array, shape: Sequence[int], rule: Resampling, current: Sequence[float], new: Sequence[float]
) -> Array:
    """Like `resample`, for a segmentation: every label is resampled by itself, and the largest wins."""
    if not _changes(labels, shape, rule):
        return labels
    axis = slice_axis(rule, current, new)
    if axis is None:
        return _resize_labels(labels, shape, rule.order)
    dtype = np.dtype(np.float64)
    slices = _slice_by_slice(labels, shape, axis, dtype, lambda one, inside: _resize_labels(one, inside, rule.order))
    if slices.shape[axis] == shape[axis]:
        return slices
    if rule.order_z == 0:
        return np.take(slices, nearest_slices(slices.shape[axis], shape[axis]), axis=axis)
    out = np.zeros(tuple(shape), dtype=labels.dtype)
    for label in np.unique(slices):
        out[np.round(_between_slices((slices == label).astype(float), shape, rule.order_z)) > 0.5] = label
    return out


def _slice_by_slice(
    image: Array, shape: Sequence[int], axis: int, dtype: np.dtype, resize_one: Callable[[Array, Sequence[int]], Array]
) -> Array:
    """Resize every slice along ``axis`` to the other sides of ``shape``; the number of slices is unchanged."""
    inside = [size for i, size in enumerate(shape) if i != axis]
    slices = np.empty([*shape[:axis], image.shape[axis], *shape[axis + 1 :]], dtype=dtype)
    for number in range(image.shape[axis]):
        place = (slice(None),) * axis + (number,)
        slices[place] = resize_one(image[place], inside)
    return slices


def _changes(image: Array, shape: Sequence[int], rule: Resampling) -> bool:
    if rule.function not in KNOWN:
        raise RunnerError(f"This runner cannot resample with {rule.function}, only with {' and '.join(KNOWN)}.")
    return rule.function == KNOWN[0] and tuple(image.shape) != tuple(shape)


def nearest_slices(have: int, want: int) -> Array:
    """For each of ``want`` slices, the number of the nearest of ``have`` slices.

    >>> nearest_slices(2, 4)
    array([0, 0, 1, 1])
    """
    places = float(have) / want * (np.arange(want) + 0.5) - 0.5
    found: Array = ndimage.map_coordinates(np.arange(have, dtype=float), [places], order=0, mode="nearest")
    return found.astype(np.int64)


def _between_slices(slices: Array, shape: Sequence[int], order: int) -> Array:
    """Resample along the axis of slices with a spline of an order above 0."""
    places = [
        float(have) / want * (grid + 0.5) - 0.5
        for have, want, grid in zip(slices.shape, shape, np.mgrid[tuple(slice(size) for size in shape)], strict=True)
    ]
    found: Array = ndimage.map_coordinates(slices, places, order=order, mode="nearest")
    return found


def _resize_labels(labels: Array, shape: Sequence[int], order: int) -> Array:
    """``resize_segmentation`` of batchgenerators: if two labels tie, the nearest neighbour decides."""
    values = np.unique(labels)
    if order == 0:
        return resize(labels.astype(float), shape, 0, float)
    if len(values) == 1:
        return np.full(tuple(shape), values[0], dtype=float)
    nearest = np.searchsorted(values, resize(labels.astype(float), shape, 0, float))
    best = resize((labels == values[0]).astype(float), shape, order, float)
    winner = np.zeros(tuple(shape), dtype=np.int64)
    nearest_leads = (nearest == 0) & (best > 0)
    for number, value in enumerate(values[1:], start=1):
        score = resize((labels == value).astype(float), shape, order, float)
        is_nearest = nearest == number
        nearest_leads |= (score == best) & (score > 0) & is_nearest
        better = score > best
        nearest_leads[better] = is_nearest[better]
        winner[better] = number
        np.maximum(best, score, out=best)
    winner[nearest_leads] = nearest[nearest_leads]
    return values[winner]
