"""From an image to the network's input, as in nnU-Net's DefaultPreprocessor: transpose, crop, normalise, resample."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from .errors import RunnerError
from .model import Configuration, Normalization
from .resampling import new_shape, resample, resample_labels

Array = NDArray[Any]
EPSILON = 1e-8
Box = list[tuple[int, int]]


@dataclass(frozen=True)
class Frame:
    """Where the network's input is in the image; axes are in the network's order.

    Attributes:
        shape: of the image, in voxels.
        box: first and last (exclusive) voxel that is not 0, along each axis.
        spacing: of the image, mm.
        network_spacing: mm.
    """

    shape: tuple[int, ...]
    box: Box
    spacing: list[float]
    network_spacing: list[float]

    @property
    def cropped(self) -> tuple[int, ...]:
        return tuple(stop - start for start, stop in self.box)

    @property
    def window(self) -> tuple[slice, ...]:
        return tuple(slice(start, stop) for start, stop in self.box)


def preprocess(
    image: Array,
    spacing: Sequence[float],
    configuration: Configuration,
    previous: Array | None = None,
    labels: Sequence[int] = (),
) -> tuple[Array, Frame]:
    """Turn an image into the network's input. The image is changed.

    Args:
        image: ``(C, Z, Y, X)`` float32.
        spacing: mm, along Z, Y, X.
        previous: a cascade's segmentation of the previous stage, ``(Z, Y, X)``.
        labels: values of the structures that become channels.

    Returns:
        ``(C, *S)`` float32, and where it is in the image.

    Raises:
        RunnerError: if a channel cannot be normalised, or the previous segmentation has another size.
    """
    if previous is not None and previous.shape != image.shape[1:]:
        sizes = f"{previous.shape}, the image of {image.shape[1:]}"
        raise RunnerError(f"The previous stage's segmentation has size {sizes}.")
    axes = configuration.transpose_forward
    image = image.transpose([0, *(axis + 1 for axis in axes)])
    spacing = [spacing[axis] for axis in axes]
    target = list(configuration.spacing)
    if len(target) < image.ndim - 1:  # for a 2d network, slices keep their distance
        target = [spacing[0], *target]
    needs_mask = previous is not None or any(channel.inside_mask for channel in configuration.normalization)
    mask = _mask(image, needs_mask)
    frame = Frame(tuple(image.shape[1:]), _box(mask), list(spacing), target)
    of_all_channels = (slice(None), *frame.window)
    image, mask = image[of_all_channels], mask[frame.window]
    if previous is not None:
        previous = previous.transpose(axes)[frame.window].astype(np.float32)
        previous[(previous == 0) & ~mask] = -1
        mask = previous >= 0
    shape = new_shape(frame.cropped, spacing, target)
    channels = len(image) + (len(labels) if previous is not None else 0)
    out = np.empty((channels, *shape), dtype=np.float32)
    for number, channel in enumerate(configuration.normalization):
        normalize(image[number], mask, channel)
        out[number] = resample(image[number], shape, configuration.resample_image, spacing, target)
    if previous is not None:
        seen = resample_labels(previous, shape, configuration.resample_labels, spacing, target)
        for number, label in enumerate(labels, start=len(image)):
            out[number] = seen == label
    return out, frame


def normalize(image: Array, mask: Array, how: Normalization) -> None:
    """Normalise one channel ``(D, H, W)`` float32 in place.

    Args:
        mask: True at voxels that are not 0, holes filled.

    Raises:
        RunnerError: if the scheme is unknown, or the values are not RGB values.
    """
    if how.scheme == "CTNormalization":
        statistics = how.statistics
        np.clip(image, statistics["percentile_00_5"], statistics["percentile_99_5"], out=image)
        image -= statistics["mean"]
        image /= max(statistics["std"], EPSILON)
    elif how.scheme == "ZScoreNormalization" and how.inside_mask:
        inside = image[mask]
        image[mask] = (inside - inside.mean()) / max(inside.std(), EPSILON)
    elif how.scheme == "ZScoreNormalization":
        mean, deviation = image.mean(), image.std()
        image -= mean
        image /= max(deviation, EPSILON)
    elif how.scheme == "RescaleTo01Normalization":
        image -= image.min()
        image /= np.clip(image.max(), a_min=EPSILON, a_max=None)
    elif how.scheme == "RGBTo01Normalization":
        if image.min() < 0 or image.max() > 255:
            raise RunnerError(f"RGB values must be 0 to 255, found {image.min():g} to {image.max():g}.")
        image /= 255.0
    elif how.scheme != "NoNormalization":
        raise RunnerError(f"This runner does not know the normalisation {how.scheme}.")


def _mask(image: Array, filled: bool) -> Array:
    """True where any channel is not 0. Holes are not filled, which would take long: the box around it is the same."""
    mask: Array = image[0] != 0
    for channel in image[1:]:
        mask |= channel != 0
    return ndimage.binary_fill_holes(mask) if filled else mask


def _box(mask: Array) -> Box:
    """The box around the voxels that are True; the full image if none is."""
    box = []
    for axis in range(mask.ndim):
        found = np.flatnonzero(mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        box.append((int(found[0]), int(found[-1]) + 1) if len(found) else (0, mask.shape[axis]))
    return box
