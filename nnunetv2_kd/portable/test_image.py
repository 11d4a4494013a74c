"""A test image of noise and shapes for a model, and what nnU-Net's own pipeline predicts for it."""

import contextlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk  # noqa: N813
import torch
from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.postprocessing.remove_connected_components import remove_all_but_largest_component_from_segmentation
from nnunetv2.utilities.label_handling.label_handling import convert_labelmap_to_one_hot

from nnunetv2_kd.inference.device import prediction_threads
from nnunetv2_kd.networks.threads import torch_threads
from nnunetv2_kd.runner.self_test import EXPECTED, FOLDER, LOGITS, NAME, PREVIOUS

SPACING = (1.25, 0.9, 1.1)  # of the image, as multiples of the network's, so that it is resampled
PATCHES = (
    0.8,
    1.0,
    1.3,
)  # of the image along the network's axes, in patches: one is padded, one fits, one needs two tiles
SLICES = 3  # number of slices for a 2d network
PLACES = 64  # number of positions at which logits are stored


def write_test_image(folder: Path, predictors: Sequence[nnUNetPredictor], postprocessing: Sequence[Any]) -> None:
    """Write the folder ``self_test``: an image, nnU-Net's segmentation of it, and some of nnU-Net's logits.

    Args:
        folder: the exported folder.
        predictors: nnU-Net's, in PyTorch, one per model.
        postprocessing: as determined by nnU-Net.
    """
    home = folder / FOLDER
    home.mkdir()
    first = predictors[0]
    ending = first.dataset_json["file_ending"]
    image, spacing = shapes_and_noise(first)
    files = _write_image(home, image, spacing, first)
    previous = None
    if any(predictor.configuration_manager.previous_stage_name is not None for predictor in predictors):
        previous = home / f"{PREVIOUS}{ending}"
        _write_previous(home, image, files, previous, first)
    segmented, properties, logits = predict_with_nnunet([str(file) for file in files], previous, predictors)
    for rule in postprocessing:
        segmented = remove_all_but_largest_component_from_segmentation(segmented, _labels_of(rule))
    writer = first.plans_manager.image_reader_writer_class()
    writer.write_seg(segmented, str(home / f"{EXPECTED}{ending}"), properties)
    rng = np.random.default_rng(0)
    places = np.stack([rng.integers(0, size, PLACES) for size in logits.shape[1:]], axis=1)
    of_all_classes = (slice(None), *places.T)
    recorded = {
        "shape": list(logits.shape[1:]),
        "places": places.tolist(),
        "logits": logits[of_all_classes].astype(float).tolist(),
    }
    (home / LOGITS).write_text(json.dumps(recorded) + "\n", encoding="utf-8")


def predict_with_nnunet(
    files: list[str], previous: Path | None, predictors: Sequence[nnUNetPredictor]
) -> tuple[np.ndarray, dict[str, Any], np.ndarray]:
    """Predict with nnU-Net's own functions, from files to a segmentation. Several models are combined as by
    ``nnUNetv2_ensemble``.

    Returns:
        The segmentation, nnU-Net's properties of the image, and the first model's logits, float16.
    """
    mean: Any = None
    first_logits: np.ndarray | None = None
    segmented: Any = None
    properties: dict[str, Any] = {}
    with torch_threads(prediction_threads()):
        for predictor in predictors:
            plans, configuration = predictor.plans_manager, predictor.configuration_manager
            labels = predictor.label_manager
            given = str(previous) if previous is not None and configuration.previous_stage_name is not None else None
            with contextlib.redirect_stdout(io.StringIO()):
                data, seen, properties = configuration.preprocessor_class(verbose=False).run_case(
                    files, given, plans, configuration, predictor.dataset_json
                )
            if given is not None:
                data = np.vstack((data, convert_labelmap_to_one_hot(seen[0], labels.foreground_labels, data.dtype)))
            image = torch.from_numpy(np.ascontiguousarray(data, dtype=np.float32))
            logits = predictor.predict_logits_from_preprocessed_data(image)
            first_logits = logits.numpy().copy() if first_logits is None else first_logits
            found = convert_predicted_logits_to_segmentation_with_correct_shape(
                logits,
                plans,
                configuration,
                labels,
                properties,
                return_probabilities=len(predictors) > 1,
                num_threads_torch=prediction_threads(),
            )
            segmented, probabilities = found if len(predictors) > 1 else (found, 0)
            mean = probabilities if mean is None else mean + probabilities
    if len(predictors) > 1:
        found = predictors[0].label_manager.convert_probabilities_to_segmentation(mean / len(predictors))
        segmented = np.asarray(found)
    assert first_logits is not None
    return np.asarray(segmented), properties, first_logits


def shapes_and_noise(predictor: nnUNetPredictor) -> tuple[np.ndarray, list[float]]:
    """An image ``(C, Z, Y, X)`` for a model, and its spacing along Z, Y, X: ellipsoids in noise, surrounded by zeros.

    Its intensities are like those of the training images, if the plans have them.
    """
    plans, configuration = predictor.plans_manager, predictor.configuration_manager
    patch, spacing = list(configuration.patch_size), [float(value) for value in configuration.spacing]
    seen = [max(8, round(share * size)) for share, size in zip(PATCHES[-len(patch) :], patch, strict=True)]
    is_flat = _is_flat(predictor)
    if len(patch) == 2:
        seen, spacing = [1 if is_flat else SLICES, *seen], [4 * max(spacing), *spacing]
    # 2d images have no spacing to change, and slices keep theirs
    factors = (1.0, 1.0, 1.0) if is_flat else SPACING if len(patch) == 3 else (1.0, *SPACING[1:])
    own = [value * factor for value, factor in zip(spacing, factors, strict=True)]
    inside = [max(1, round(size / factor)) for size, factor in zip(seen, factors, strict=True)]
    back = plans.transpose_backward
    shape, own = [inside[axis] for axis in back], [own[axis] for axis in back]
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, size) if size > 1 else [0.0] for size in shape), indexing="ij"))
    statistics = plans.foreground_intensity_properties_per_channel
    channels = []
    for number, scheme in enumerate(configuration.normalization_schemes):
        recorded = statistics.get(str(number), {}) if isinstance(statistics, dict) else {}
        mean, deviation = float(recorded.get("mean", 100.0)), max(float(recorded.get("std", 30.0)), 1e-3)
        values = rng.standard_normal(shape) * 0.3
        for height in (-1.5, 1.0, 2.0):
            middle, size = rng.uniform(-0.4, 0.4, 3), rng.uniform(0.25, 0.6, 3)
            values[(((grid - middle[:, None, None, None]) / size[:, None, None, None]) ** 2).sum(0) < 1] += height
        values = mean + deviation * values
        if is_flat or scheme == "RGBTo01Normalization":
            values = np.clip(values, 1, 255).round()
        channels.append(np.pad(values, [(0, 0) if size < 4 else (2, 1) for size in shape]))
    return np.stack(channels).astype(np.float32), own


def _is_flat(predictor: nnUNetPredictor) -> bool:
    return predictor.plans_manager.plans["image_reader_writer"] == "NaturalImage2DIO"


def _write_image(folder: Path, image: np.ndarray, spacing: list[float], predictor: nnUNetPredictor) -> list[Path]:
    """Write one file per channel, in the format of the model's reader; returns the files."""
    ending, reader = predictor.dataset_json["file_ending"], predictor.plans_manager.plans["image_reader_writer"]
    if reader == "NaturalImage2DIO":
        return _write_natural(folder, image, ending)
    files = [folder / f"{NAME}_{number:04d}{ending}" for number in range(len(image))]
    for file, channel in zip(files, image, strict=True):
        if reader == "Tiff3DIO":
            import tifffile

            tifffile.imwrite(file, channel)
        else:
            written = sitk.GetImageFromArray(channel)
            written.SetSpacing(spacing[::-1])
            written.SetOrigin((-31.0, 12.0, 7.5))
            written.SetDirection((-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0))
            sitk.WriteImage(written, str(file), True)
    if reader == "Tiff3DIO":
        (folder / f"{NAME}.json").write_text(json.dumps({"spacing": spacing}), encoding="utf-8")
    return files


def _write_natural(folder: Path, image: np.ndarray, ending: str) -> list[Path]:
    from skimage import io as skimage_io

    flat = image[:, 0].astype(np.uint8)
    if len(flat) in (3, 4):  # all colours in one file
        file = folder / f"{NAME}_0000{ending}"
        skimage_io.imsave(file, flat.transpose(1, 2, 0), check_contrast=False)
        return [file]
    files = [folder / f"{NAME}_{number:04d}{ending}" for number in range(len(flat))]
    for file, channel in zip(files, flat, strict=True):
        skimage_io.imsave(file, channel, check_contrast=False)
    return files


def _write_previous(
    folder: Path, image: np.ndarray, files: Sequence[Path], output: Path, predictor: nnUNetPredictor
) -> None:
    """Write what a cascade's previous stage might have found: the brightest part, as one structure after the other."""
    reader = predictor.plans_manager.image_reader_writer_class()
    _, properties = reader.read_images([str(file) for file in files])
    labels = predictor.label_manager.foreground_labels
    bands = np.digitize(image[0], np.quantile(image[0], np.linspace(0.6, 1.0, len(labels) + 1)[:-1]))
    reader.write_seg(np.array([0, *labels], dtype=np.uint8)[bands], str(output), properties)


def _labels_of(rule: Any) -> Any:
    """The rule in nnU-Net's form: a label, a region as a tuple, or a list of both."""
    if isinstance(rule, list):
        return [tuple(part) if isinstance(part, list) else part for part in rule]
    return rule
