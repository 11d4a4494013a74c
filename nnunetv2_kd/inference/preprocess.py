"""nnU-Net's preprocessing of one case for prediction, without what a prediction does not need.

nnU-Net also fills holes in the nonzero mask, and resamples that mask to the network's spacing. A prediction needs
neither, because filling holes does not change the mask's bounding box. The exception is a channel that is normalised
inside the mask.
"""

from pathlib import Path
from typing import Any

import numpy as np
from acvl_utils.cropping_and_padding.bounding_boxes import bounding_box_to_slice, get_bbox_from_mask
from nnunetv2.preprocessing.cropping.cropping import create_nonzero_mask
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.preprocessing.resampling.default_resampling import compute_new_shape
from nnunetv2.utilities.label_handling.label_handling import convert_labelmap_to_one_hot
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunetv2_kd.errors import KDError
from nnunetv2_kd.nnunet.images import check_complete

# nnU-Net's normalisations, which use the mask only if `use_mask_for_norm` says so
KNOWN_NORMALIZATIONS = {
    "CTNormalization",
    "ZScoreNormalization",
    "NoNormalization",
    "RescaleTo01Normalization",
    "RGBTo01Normalization",
}


def preprocess(
    files: list[str],
    previous: str | None,
    plans: PlansManager,
    configuration: ConfigurationManager,
    dataset_json: dict[str, Any],
) -> tuple[np.ndarray, dict[str, Any]]:
    """Read and preprocess one case.

    Args:
        files: its channel files.
        previous: for a cascade, the file with the previous stage's segmentation.

    Returns:
        The image ``(C, *S)`` float32 at the network's spacing (for a cascade with the previous segmentation as further
        channels), and nnU-Net's properties of the case.

    Raises:
        KDError: if a file is truncated, or the case has another number of channels than the model.
    """
    for file in [*files, previous] if previous is not None else files:
        check_complete(Path(file))
    reader = plans.image_reader_writer_class()
    image, properties = reader.read_images(files)
    check_channels(image, dataset_json)
    segmentation = reader.read_seg(previous)[0] if previous is not None else None
    image, segmentation, properties = preprocess_array(
        image, segmentation, properties, plans, configuration, dataset_json
    )
    if segmentation is not None:
        labels = plans.get_label_manager(dataset_json).foreground_labels
        image = np.vstack((image, convert_labelmap_to_one_hot(segmentation[0], labels, image.dtype)))
    return np.ascontiguousarray(image, dtype=np.float32), properties


def preprocess_array(
    image: np.ndarray,
    segmentation: np.ndarray | None,
    properties: dict[str, Any],
    plans: PlansManager,
    configuration: ConfigurationManager,
    dataset_json: dict[str, Any],
) -> tuple[np.ndarray, np.ndarray | None, dict[str, Any]]:
    """Like nnU-Net's ``run_case_npy``: transpose, crop, normalise, resample. The segmentation is a
    cascade's, or None."""
    preprocessor = configuration.preprocessor_class(verbose=False)
    is_known = set(configuration.normalization_schemes) <= KNOWN_NORMALIZATIONS
    if segmentation is not None or type(preprocessor) is not DefaultPreprocessor or not is_known:
        given = segmentation is not None
        image, segmentation, properties = preprocessor.run_case_npy(
            image, segmentation, properties, plans, configuration, dataset_json
        )
        return image, segmentation if given else None, properties
    data: np.ndarray = image.astype(np.float32)  # a copy, which is normalised in place
    data = data.transpose([0, *(axis + 1 for axis in plans.transpose_forward)])
    spacing = [properties["spacing"][axis] for axis in plans.transpose_forward]
    properties["shape_before_cropping"] = data.shape[1:]
    data, mask, box = _crop(data, any(configuration.use_mask_for_norm))
    properties["bbox_used_for_cropping"] = box
    properties["shape_after_cropping_and_before_resampling"] = data.shape[1:]
    target = configuration.spacing
    if len(target) < len(data.shape[1:]):  # 2d: slices keep their distance
        target = [spacing[0], *target]
    new_shape = compute_new_shape(data.shape[1:], spacing, target)
    data = preprocessor._normalize(data, mask, configuration, plans.foreground_intensity_properties_per_channel)
    return configuration.resampling_fn_data(data, new_shape, spacing, target), None, properties


def check_channels(image: np.ndarray, dataset_json: dict[str, Any]) -> None:
    """Check that an image ``(C, *S)`` has as many channels as the model expects.

    Raises:
        KDError: if it does not.
    """
    names = list(dataset_json.get("channel_names", dataset_json.get("modality", {})).values())
    if names and image.shape[0] != len(names):
        raise KDError(f"has {image.shape[0]} channels, the model expects {len(names)}: {', '.join(map(str, names))}")


def _crop(data: np.ndarray, needs_mask: bool) -> tuple[np.ndarray, np.ndarray, Any]:
    """The nonzero part of ``(C, *S)``, nnU-Net's mask of it (0 inside, -1 outside), and its bounding box."""
    if needs_mask:
        filled = create_nonzero_mask(data)
    else:
        filled = data[0] != 0
        for channel in data[1:]:
            filled |= channel != 0
    box = get_bbox_from_mask(filled)
    window = bounding_box_to_slice(box)
    inside = (slice(None), *window)
    data = data[inside]
    if needs_mask:
        return data, np.where(filled[window][None], np.int8(0), np.int8(-1)), box
    return data, np.broadcast_to(np.int8(0), (1, *data.shape[1:])), box
