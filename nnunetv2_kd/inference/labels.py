"""Turn logits at the network's spacing into a segmentation of the image, identical to nnU-Net's in every voxel.

nnU-Net resamples the logits of every class to the image's size in double precision, rounds them to half precision and
takes the largest. Here this is computed only where classes compete: if one class leads at all corners of a voxel by
more than the rounding, it also wins after linear interpolation.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from acvl_utils.cropping_and_padding.bounding_boxes import insert_crop_into_image
from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape
from nnunetv2.preprocessing.resampling.default_resampling import determine_do_sep_z_and_axis
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import Tensor

from nnunetv2_kd.inference.interpolation import (
    UNDECIDED,
    decide,
    in_threads,
    interpolate_undecided,
    largest_two,
    linear_weights,
)
from nnunetv2_kd.networks.threads import torch_threads

SLAB = 16  # slices processed at a time
LINEAR = {"is_seg": False, "order": 1}


def segmentation_of(
    logits: Tensor,
    properties: dict[str, Any],
    plans: PlansManager,
    configuration: ConfigurationManager,
    labels: LabelManager,
    threads: int,
) -> np.ndarray:
    """The segmentation that nnU-Net makes from logits ``(K, *S)``, in the image's shape and order of axes."""
    shape = tuple(int(size) for size in properties["shape_after_cropping_and_before_resampling"])
    resampled = tuple(logits.shape[1:]) != shape
    if (
        labels.has_regions
        or len(labels.all_labels) > UNDECIDED
        or (resampled and not _is_linear(logits.shape[1:], shape, properties, plans, configuration))
    ):
        with torch_threads(threads):
            return convert_predicted_logits_to_segmentation_with_correct_shape(
                logits, plans, configuration, labels, properties, num_threads_torch=threads
            )
    inside = largest(logits, shape, threads)
    dtype = np.uint8 if len(labels.foreground_labels) < 255 else np.uint16
    whole = np.zeros(properties["shape_before_cropping"], dtype=dtype)
    whole = insert_crop_into_image(whole, inside, properties["bbox_used_for_cropping"])
    return whole.transpose(plans.transpose_backward)


def _is_linear(
    source: Sequence[int],
    shape: Sequence[int],
    properties: dict[str, Any],
    plans: PlansManager,
    configuration: ConfigurationManager,
) -> bool:
    """Whether nnU-Net resamples logits of spatial size ``source`` to ``shape`` linearly along every axis."""
    settings = configuration.configuration
    kwargs = settings["resampling_fn_probabilities_kwargs"]
    if settings["resampling_fn_probabilities"] != "resample_data_or_seg_to_shape":
        return False
    if any(kwargs.get(key) != value for key, value in LINEAR.items()):
        return False
    spacing = [properties["spacing"][axis] for axis in plans.transpose_forward]
    current = configuration.spacing
    if len(current) != len(shape):
        current = [spacing[0], *current]
    by_slices, axis = determine_do_sep_z_and_axis(kwargs.get("force_separate_z"), current, spacing)
    return not by_slices or source[axis] == shape[axis]  # slice by slice, and no new slices


def largest(logits: Tensor, shape: Sequence[int], threads: int) -> np.ndarray:
    """Index of the largest logit at every voxel of ``shape``, uint8, from logits ``(K, D, H, W)``: the argmax of
    scikit-image's ``resize(logits, order=1)`` in double precision, rounded to the logits' precision."""
    source = logits.shape[1:]
    weights = [linear_weights(have, want) for have, want in zip(source, shape, strict=True)]
    is_same = tuple(source) == tuple(shape)
    out: np.ndarray = np.empty(tuple(shape), dtype=np.uint8)
    dtype = np.float16 if logits.dtype == torch.float16 else np.float32

    def work(start: int) -> None:
        stop = min(start + SLAB, shape[0])
        if is_same:
            out[start:stop] = largest_two(logits[:, start:stop].float().contiguous().numpy())[0]
            return
        lower, upper, weight = (part[start:stop] for part in weights[0])
        first, last = int(lower.min()), int(upper.max()) + 1
        part = logits[:, first:last].float().contiguous().numpy()
        along = (lower - first, upper - first, weight)
        slab = out[start:stop]
        if decide(*largest_two(part), *along, *weights[1], *weights[2], slab):
            places = np.argwhere(slab == UNDECIDED)
            values = interpolate_undecided(part, places, *along, *weights[1], *weights[2])
            slab[tuple(places.T)] = values.astype(dtype).astype(np.float32).argmax(0)

    in_threads(work, range(0, shape[0], SLAB), threads)
    return out
