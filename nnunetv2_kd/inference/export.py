"""Export a trained model, and check that the export predicts the same as the model."""

import json
import zipfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from nnunetv2.paths import nnUNet_preprocessed

from nnunetv2_kd.choices import EXPORT_PRECISIONS, ExportFormat, ExportPrecision
from nnunetv2_kd.errors import KDError, listing
from nnunetv2_kd.inference.agreement import Agreement, Case, compare, predict_case
from nnunetv2_kd.inference.choose import convert, use_runtime
from nnunetv2_kd.inference.exported import EXPORT_FILE, load_exported
from nnunetv2_kd.inference.model_card import without_origin, write_card
from nnunetv2_kd.inference.predict import check_model
from nnunetv2_kd.inference.predictor import FastPredictor
from nnunetv2_kd.inference.runtimes import check_runtime
from nnunetv2_kd.networks import cpu_mode
from nnunetv2_kd.nnunet.checkpoint import read_checkpoint
from nnunetv2_kd.nnunet.datasets import ground_truth_folder, training_images
from nnunetv2_kd.nnunet.files import check_writable, read_json, sha256
from nnunetv2_kd.nnunet.images import cases_in, channel_files, reader_of, reading_problems
from nnunetv2_kd.nnunet.model_files import read_dataset_json, read_plans_file
from nnunetv2_kd.nnunet.model_folder import FINAL, parse_model_name
from nnunetv2_kd.nnunet.room_on_disk import whole_folder
from nnunetv2_kd.nnunet.splits import read_splits
from nnunetv2_kd.teachers.check import channels

PRECISIONS_OF: dict[ExportFormat, tuple[ExportPrecision, ...]] = {
    "nnunet": ("f32", "fp16"),
    "onnx": ("f32",),
    "portable": ("f32",),
    "openvino": EXPORT_PRECISIONS,
}
# f32: differing voxels per 100,000 foreground voxels; others: change of a structure's mean Dice
TOLERANCES: dict[ExportPrecision, float] = {"f32": 5.0, "bf16": 0.001, "fp16": 0.001, "int8": 0.005}
NEEDED = ("network_weights", "init_args", "trainer_name", "inference_allowed_mirroring_axes", "current_epoch")
# keys of dataset.json to export; others may hold names of cases or paths
DATASET_KEYS = (
    "name",
    "description",
    "channel_names",
    "modality",
    "labels",
    "regions_class_order",
    "file_ending",
    "overwrite_image_reader_writer",
    "numTraining",
    "licence",
    "license",
    "reference",
)


@dataclass(frozen=True)
class ExportRequest:
    """The flags of ``nnUNetv2_kd export``.

    Attributes:
        model: the model's folder, ``TRAINER__PLANS__CONFIGURATION``.
        folds: the folds to export; several predict as an ensemble.
        output: the folder to create.
        images: images to compare on; None: the first fold's validation cases.
        truths: their ground truth; None if there is none.
        previous: for a cascade, the previous stage's segmentations of these images.
        cases: maximum number of cases to compare on.
        tolerance: instead of `TOLERANCES`.
        intended_use, licence: for the model card.
    """

    model: Path
    folds: Sequence[str]
    output: Path
    format: ExportFormat
    precision: ExportPrecision = "f32"
    checkpoint: str = FINAL
    images: Path | None = None
    truths: Path | None = None
    previous: Path | None = None
    cases: int | None = None
    tolerance: float | None = None
    intended_use: str = ""
    licence: str = ""

    @property
    def limit(self) -> float:
        return TOLERANCES[self.precision] if self.tolerance is None else self.tolerance


def export(request: ExportRequest, say: Callable[[str], None], progress: Callable[..., Iterable] = iter) -> Agreement:
    """Write the exported model. The folder appears only once it is complete and has passed the comparison.

    Raises:
        KDError: if the model, the runtime or the cases are missing, the network cannot be converted, or the export does
            not predict the same as the model. In all these cases, nothing is left behind.
    """
    check_request(request)
    dataset_json = read_dataset_json(request.model / "dataset.json")
    cases = cases_to_compare(request, dataset_json)
    with whole_folder(request.output) as unfinished:
        say(f"exporting {request.model.name}, fold {' '.join(request.folds)}, as {request.format} {request.precision}")
        checkpoints = _checksums(request)
        reference = _reference(request)
        about = _write(request, reference, unfinished, checkpoints)
        if _checksums(request) != checkpoints:
            raise KDError(
                f"{request.checkpoint} of {request.model} has changed while it was exported: a training writes it. "
                "Nothing was exported. Once the training has ended, export its checkpoint_final.pth."
            )
        other = _exported(request, unfinished)
        say(f"comparing with PyTorch on {len(cases)} case{'s' if len(cases) > 1 else ''}")
        predict = [partial(predict_case, predictor) for predictor in (reference, other)]
        reader = reader_of(reference.plans_manager.plans, dataset_json)
        found = compare(predict[0], predict[1], dataset_json, reader, cases, progress)
        check_agreement(found, request)
        about["proof"] = proof(found, request)
        write_card(unfinished, about, request, reference, found)
        if request.format == "nnunet":
            _zip(unfinished, request)
        _write_about(about, unfinished)
    return found


def check_request(request: ExportRequest) -> None:
    """Check that the flags fit together and fit this machine.

    Raises:
        KDError: if they do not; says what to type.
    """
    able = PRECISIONS_OF[request.format]
    if request.precision not in able:
        raise KDError(
            f"--format {request.format} has no --precision {request.precision}, only {', '.join(able)}. "
            "All of them: --format openvino"
        )
    check_output(request)
    if request.format in ("onnx", "openvino"):
        check_runtime(request.format, "int8" if request.precision == "int8" else "f32", "cpu")
    if request.precision == "bf16":
        cpu_mode.check_here("bfloat16")
    if parse_model_name(request.model.name) is None or not request.model.is_dir():
        raise KDError(f"{request.model} is not a model folder: expected TRAINER__PLANS__CONFIGURATION, trained folds.")
    check_model(request.model, request.folds, request.checkpoint)


def check_output(request: ExportRequest) -> None:
    """Check that the numbers are in range, and that the folder can be created.

    Raises:
        KDError: if they are not, or it cannot.
    """
    if request.tolerance is not None and not request.tolerance >= 0:
        raise KDError(f"--tolerance must be 0 or more, found {request.tolerance:g}.")
    if request.cases is not None and request.cases < 1:
        raise KDError(f"--cases must be at least 1, found {request.cases}.")
    if request.output.is_dir() and any(request.output.iterdir()):
        raise KDError(f"-o {request.output} is not empty and was left alone. Choose another folder, or remove it.")
    if request.output.exists() and not request.output.is_dir():
        raise KDError(f"-o {request.output} is a file. Choose another name for the folder.")
    check_writable(request.output.absolute().parent)


def has_images(request: ExportRequest) -> bool:
    """Whether there are images to compare on: those of ``-i``, or validation cases of the first fold."""
    if request.images is not None:
        return True
    dataset = request.model.parent.name
    ending = read_json(request.model / "dataset.json")["file_ending"]
    return any(training_images(dataset, name, ending) for name in _validation_cases(dataset, request.folds[0]))


def cases_to_compare(request: ExportRequest, dataset_json: dict[str, Any]) -> list[Case]:
    """The images of ``-i``, or the validation cases of the first fold.

    Raises:
        KDError: if there are none.
    """
    ending = dataset_json["file_ending"]
    if request.images is not None:
        truths, images = request.truths, request.images
        files = {name: channel_files(images, name, ending) for name in cases_in(images, ending)}
    else:
        dataset = request.model.parent.name
        truths = ground_truth_folder(dataset)
        names = _validation_cases(dataset, request.folds[0])
        files = {name: found for name in names if (found := training_images(dataset, name, ending))}
        if not files:
            raise KDError(
                f"An export is compared with PyTorch on the validation cases of fold {request.folds[0]} of {dataset}, "
                "but their images are not under nnUNet_raw, or there is no splits_final.json under "
                "nnUNet_preprocessed. Give images: -i IMAGES"
            )
    chosen = sorted(files)[: request.cases]
    _check_readable(request, dataset_json, {name: files[name] for name in chosen})
    previous = {name: request.previous / f"{name}{ending}" for name in chosen} if request.previous else {}
    lacking = [str(file) for file in previous.values() if not file.is_file()]
    if lacking:
        raise KDError(listing("-prev_stage_predictions lacks segmentations of the cases to compare on:", lacking))
    if truths is not None and not truths.is_dir():
        raise KDError(f"-gt {truths} is not a folder.")
    truth_of = {name: truths / f"{name}{ending}" for name in chosen} if truths is not None else {}
    return [
        Case(
            files[name],
            truth_of[name] if name in truth_of and truth_of[name].is_file() else None,
            str(previous[name]) if previous else None,
        )
        for name in chosen
    ]


def _check_readable(request: ExportRequest, dataset_json: dict[str, Any], cases: dict[str, list[str]]) -> None:
    reader = reader_of(read_plans_file(request.model / "plans.json"), dataset_json)
    problems = reading_problems(cases, reader, len(channels(dataset_json)))
    if problems:
        raise KDError(listing("Nothing was exported, as images to compare on cannot be predicted:", problems))


def check_agreement(found: Agreement, request: ExportRequest) -> None:
    """Check that the export predicts the same as the model.

    Raises:
        KDError: if the predictions differ by more than is allowed.
    """
    by = found.per_100000 if request.precision == "f32" else found.dice_lost
    if by <= request.limit:
        return
    what = (
        f"{found.per_100000:.1f} voxels per 100,000 of foreground differ"
        if request.precision == "f32"
        else f"the Dice of a structure changes by {found.dice_lost:.4f}"
    )
    raise KDError(
        f"The export does not predict the same as the model: {what}; the limit is {request.limit:g}. Nothing was "
        f"written. Choose another --precision or --format, or allow it: --tolerance {by:.2g}"
    )


def proof(found: Agreement, request: ExportRequest) -> dict[str, Any]:
    """The comparison as plain values, for ``export.json``."""
    values = asdict(found)
    for key in ("dice", "nsd", "ms"):
        values[key] = dict(zip(("pytorch", "export"), values[key], strict=True))
    unit = "differing voxels in 100,000 of foreground" if request.precision == "f32" else "change of Dice"
    return values | {"per_100000": found.per_100000, "tolerance": request.limit, "unit": unit}


def _validation_cases(dataset: str, fold: str) -> list[str]:
    splits = read_splits(Path(nnUNet_preprocessed) / dataset) if nnUNet_preprocessed.is_set() else []
    return splits[int(fold)]["val"] if fold.isdigit() and int(fold) < len(splits) else []


def _reference(request: ExportRequest) -> FastPredictor:
    """The model in PyTorch, float32."""
    predictor = FastPredictor(device=torch.device("cpu"), allow_tqdm=False)
    folds = [fold if fold == "all" else int(fold) for fold in request.folds]
    predictor.initialize_from_trained_model_folder(str(request.model), folds, request.checkpoint)
    checkpoints = [request.model / f"fold_{fold}" / request.checkpoint for fold in request.folds]
    use_runtime(predictor, checkpoints, "torch", "f32")
    return predictor


def _exported(request: ExportRequest, folder: Path) -> FastPredictor:
    predictor = FastPredictor(device=torch.device("cpu"), allow_tqdm=False)
    if request.format == "nnunet":
        folds = [fold if fold == "all" else int(fold) for fold in request.folds]
        model = folder / request.model.parent.name / request.model.name
        predictor.initialize_from_trained_model_folder(str(model), folds, FINAL)
    else:
        load_exported(predictor, folder, request.folds)
    return predictor


def _checksums(request: ExportRequest) -> dict[str, str]:
    """SHA-256 of the checkpoint of every fold."""
    return {fold: sha256(request.model / f"fold_{fold}" / request.checkpoint) for fold in request.folds}


def _write(
    request: ExportRequest, reference: FastPredictor, folder: Path, checkpoints: dict[str, str]
) -> dict[str, Any]:
    """Write the model's files; returns their description for ``export.json``."""
    plans = without_origin(read_json(request.model / "plans.json"))
    dataset_json = without_origin(read_json(request.model / "dataset.json"))
    dataset_json = {key: dataset_json[key] for key in DATASET_KEYS if key in dataset_json}
    axes = reference.allowed_mirroring_axes
    about: dict[str, Any] = {
        "format": request.format,
        "precision": request.precision,
        "configuration": request.model.name.split("__")[-1],
        "trainer": reference.trainer_name,
        "mirroring_axes": list(axes) if axes is not None else None,
        "folds": {},
        "checkpoints": checkpoints,
        "files": {},
    }
    home = folder if request.format != "nnunet" else folder / request.model.parent.name / request.model.name
    home.mkdir(parents=True, exist_ok=True)
    for number, fold in enumerate(request.folds):
        fold_folder = home / f"fold_{fold}"
        fold_folder.mkdir()
        if request.format == "nnunet":
            file = fold_folder / FINAL
            source = request.model / f"fold_{fold}" / request.checkpoint
            torch.save(_stock_checkpoint(source, plans, dataset_json, request.precision), file)
        else:
            file = convert(
                reference,
                number,
                fold,
                "onnx" if request.format == "onnx" else "openvino",
                "int8" if request.precision == "int8" else "f32",
                fold_folder,
                request.precision == "fp16",
            )
        about["folds"][fold] = str(file.relative_to(folder))
    for name, content in (("plans.json", plans), ("dataset.json", dataset_json)):
        (home / name).write_text(json.dumps(content, indent=4, sort_keys=False) + "\n")
    _write_about(about, folder)
    return about


def _write_about(about: dict[str, Any], folder: Path) -> None:
    """Write ``export.json``, with the SHA-256 of every other file."""
    files = [file for file in sorted(folder.rglob("*")) if file.is_file() and file.name != EXPORT_FILE]
    about["files"] = {str(file.relative_to(folder)): sha256(file) for file in files}
    (folder / EXPORT_FILE).write_text(json.dumps(about, indent=2) + "\n")


def _stock_checkpoint(
    source: Path, plans: dict[str, Any], dataset_json: dict[str, Any], precision: str
) -> dict[str, Any]:
    """The part of a checkpoint that nnU-Net's predictor reads: weights, and how to build the network."""
    whole = read_checkpoint(source)
    kept = {key: whole[key] for key in NEEDED if key in whole}
    before = whole["init_args"]
    kept["init_args"] = {
        "plans": plans,
        "configuration": before["configuration"],
        "fold": before.get("fold"),
        "dataset_json": dataset_json,
    }
    if precision == "fp16":  # nnU-Net copies them into a network of float32
        kept["network_weights"] = as_float16(whole["network_weights"])
    return kept


def as_float16(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights in half precision. nnU-Net's networks list most tensors under several names; these keep sharing one
    tensor, so that torch saves it only once."""
    halved: dict[tuple[int, torch.Size], torch.Tensor] = {}
    for value in weights.values():
        if value.is_floating_point():
            halved.setdefault((value.data_ptr(), value.shape), value.half())
    return {name: halved.get((value.data_ptr(), value.shape), value) for name, value in weights.items()}


def _zip(folder: Path, request: ExportRequest) -> None:
    """Write a zip for nnUNetv2_install_pretrained_model_from_zip, with paths as under nnUNet_results."""
    dataset = request.model.parent.name
    files = [file for file in sorted((folder / dataset).rglob("*")) if file.is_file()]
    with zipfile.ZipFile(folder / f"{dataset}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for file in files:
            archive.write(file, file.relative_to(folder))
