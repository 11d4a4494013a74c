"""The content of ``model.json``: all that a prediction needs, and nothing about the place where the model was made."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nnunetv2.configuration import ANISO_THRESHOLD
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from nnunetv2_kd import __version__
from nnunetv2_kd.errors import KDError, listing
from nnunetv2_kd.nnunet.files import read_json
from nnunetv2_kd.runner.images import READERS
from nnunetv2_kd.runner.model import VERSION
from nnunetv2_kd.runner.resampling import KNOWN

NORMALIZATIONS = (
    "CTNormalization",
    "ZScoreNormalization",
    "NoNormalization",
    "RescaleTo01Normalization",
    "RGBTo01Normalization",
)
STATISTICS = ("mean", "std", "percentile_00_5", "percentile_99_5")


def describe_model(predictors: Sequence[nnUNetPredictor], networks: Sequence[Sequence[str]]) -> dict[str, Any]:
    """The content of ``model.json``.

    Args:
        predictors: initialized, one per model.
        networks: for each model, the files of its folds.

    Raises:
        KDError: if a model needs something that the runner cannot do, or the models do not fit each other.
    """
    first = predictors[0]
    problems = [problem for predictor in predictors for problem in unknown_parts(predictor)]
    problems += [problem for other in predictors[1:] for problem in _differences(first, other)]
    if problems:
        raise KDError(
            listing("The portable runner cannot do all that nnU-Net does with this model:", problems)
            + "\nExport it for nnU-Net instead: --format nnunet"
        )
    labels, dataset_json = first.label_manager, first.dataset_json
    return {
        "version": VERSION,
        "made_by": f"nnunetv2_kd {__version__}",
        "name": first.plans_manager.dataset_name,
        "labels": dataset_json["labels"],
        "channels": [str(name) for name in _channels(dataset_json).values()],
        "reader": first.plans_manager.plans["image_reader_writer"],
        "file_ending": dataset_json["file_ending"],
        "foreground_labels": [int(label) for label in labels.foreground_labels],
        "region_values": [int(v) for v in labels.regions_class_order or ()] if labels.has_regions else None,
        "heads": int(labels.num_segmentation_heads),
        "configurations": [_configuration(*pair) for pair in zip(predictors, networks, strict=True)],
        "postprocessing": [],
        "codes": {},
        "orientation": None,
    }


def unknown_parts(predictor: nnUNetPredictor) -> list[str]:
    """What a model needs from nnU-Net that the runner cannot do."""
    plans, configuration = predictor.plans_manager.plans, predictor.configuration_manager
    settings = configuration.configuration
    asked = [
        ("image_reader_writer", plans["image_reader_writer"], tuple(READERS)),
        ("label_manager", plans.get("label_manager", "LabelManager"), ("LabelManager",)),
        ("preprocessor_name", settings.get("preprocessor_name", "DefaultPreprocessor"), ("DefaultPreprocessor",)),
        *(("normalization_schemes", scheme, NORMALIZATIONS) for scheme in configuration.normalization_schemes),
        *((key, settings[key], KNOWN) for key in (f"resampling_fn_{of}" for of in ("data", "seg", "probabilities"))),
    ]
    return [f"{key}: {value} (known: {', '.join(known)})" for key, value, known in asked if value not in known]


def _differences(first: nnUNetPredictor, other: nnUNetPredictor) -> list[str]:
    found = []
    for key in ("labels", "file_ending"):
        if first.dataset_json[key] != other.dataset_json[key]:
            found.append(f"{key} differ: {first.dataset_json[key]} and {other.dataset_json[key]}")
    if list(_channels(first.dataset_json).values()) != list(_channels(other.dataset_json).values()):
        found.append("the models have different channels")
    readers = {predictor.plans_manager.plans["image_reader_writer"] for predictor in (first, other)}
    if len(readers) > 1:
        found.append(f"the models read images with {' and '.join(sorted(readers))}")
    return found


def _channels(dataset_json: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = dataset_json.get("channel_names", dataset_json.get("modality", {}))
    return found


def _configuration(predictor: nnUNetPredictor, networks: Sequence[str]) -> dict[str, Any]:
    plans, configuration = predictor.plans_manager, predictor.configuration_manager
    settings = configuration.configuration
    statistics = plans.foreground_intensity_properties_per_channel
    axes = predictor.allowed_mirroring_axes
    return {
        "name": next(name for name in plans.available_configurations if _has_settings(plans, name, settings)),
        "transpose_forward": list(plans.transpose_forward),
        "transpose_backward": list(plans.transpose_backward),
        "spacing": [float(value) for value in configuration.spacing],
        "patch_size": [int(size) for size in configuration.patch_size],
        "normalization": [
            {
                "scheme": scheme,
                "inside_mask": bool(inside),
                "statistics": {key: float(value) for key, value in statistics[str(i)].items() if key in STATISTICS},
            }
            for i, (scheme, inside) in enumerate(
                zip(configuration.normalization_schemes, configuration.use_mask_for_norm, strict=True)
            )
        ],
        "resample_image": _resampling(settings, "data"),
        "resample_labels": _resampling(settings, "seg"),
        "resample_logits": _resampling(settings, "probabilities"),
        "mirroring_axes": [int(axis) for axis in axes or ()],
        "previous_stage": configuration.previous_stage_name,
        "networks": list(networks),
    }


def _has_settings(plans: Any, name: str, settings: dict[str, Any]) -> bool:
    return bool(plans.get_configuration(name).configuration == settings)


def _resampling(settings: dict[str, Any], of: str) -> dict[str, Any]:
    kwargs = settings.get(f"resampling_fn_{of}_kwargs", {})
    return {
        "function": settings[f"resampling_fn_{of}"],
        "order": int(kwargs.get("order", 3)),
        "order_z": int(kwargs.get("order_z", 0)),
        "force_separate_z": kwargs.get("force_separate_z", False),
        "threshold": float(kwargs.get("separate_z_anisotropy_threshold", ANISO_THRESHOLD)),
    }


def postprocessing_of(model: Path, folds: Sequence[str]) -> Path | None:
    """The file in which ``nnUNetv2_find_best_configuration`` wrote the postprocessing of these folds; None if
    there is none."""
    file = model / f"crossval_results_folds_{'_'.join(folds)}" / "postprocessing.json"
    return file if file.is_file() else None


def read_postprocessing(file: Path) -> list[Any]:
    """The labels of which, one after the other, only the largest component is kept, from a ``postprocessing.json``.

    Raises:
        KDError: if it contains another kind of postprocessing.
    """
    content = read_json(file)
    functions, arguments = content.get("postprocessing_fns"), content.get("postprocessing_kwargs")
    if not isinstance(functions, list) or not isinstance(arguments, list):
        raise KDError(f"{file} is not a postprocessing.json of nnU-Net.")
    known = "remove_all_but_largest_component_from_segmentation"
    strange = [name for name in functions if name != known]
    if strange:
        raise KDError(f"{file} names {', '.join(strange)}; the runner can do only {known} only.")
    return [given["labels_or_regions"] for given in arguments]


def orientation_of(files: Sequence[str]) -> str | None:
    """The directions of the images' axes, such as ``RAS``; None if images differ, or are not volumes."""
    import SimpleITK as sitk  # noqa: N813

    found = set()
    for file in files:
        reader = sitk.ImageFileReader()
        reader.SetFileName(file)
        try:
            reader.ReadImageInformation()
        except RuntimeError:  # this format has no orientation
            return None
        if reader.GetDimension() != 3:
            return None
        found.add(sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(reader.GetDirection()))
    return found.pop() if len(found) == 1 else None
