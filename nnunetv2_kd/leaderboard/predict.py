"""Images other than the validation cases: check them against their ground truth, and predict them with every model."""

import contextlib
import glob
import io
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_kd.errors import KDError, listing
from nnunetv2_kd.inference.choose import use_runtime
from nnunetv2_kd.inference.predictor import fast_predictor_of, predictor_of
from nnunetv2_kd.leaderboard.request import STOCK, RunsIn
from nnunetv2_kd.leaderboard.scores import ScoringJob, geometry_difference, structures_of
from nnunetv2_kd.nnunet.files import sha256, write_text
from nnunetv2_kd.nnunet.images import cases_in, channel_problems, check_complete, file_per_channel, reader_of
from nnunetv2_kd.nnunet.trained_models import TrainedModel

STAMP = "made_with.json"


@dataclass(frozen=True)
class ImageSet:
    """Images with their ground truth."""

    images: Path
    truths: Path
    cases: tuple[str, ...]
    channels: int
    ending: str
    reader: type

    def image_files(self, case: str) -> list[str]:
        return [str(self.images / f"{case}_{channel:04d}{self.ending}") for channel in range(self.channels)]


def check_images(
    images: Path, truths: Path, dataset_json: dict[str, Any], plans: Mapping[str, Any] | None = None
) -> ImageSet:
    """Find images and their ground truth, named as in nnU-Net, and check that they fit together.

    Args:
        images: ``CASE_0000.nii.gz`` and so on.
        truths: ``CASE.nii.gz``.
        dataset_json: of the dataset that the models were trained on.
        plans: of the models, which name the reader of the images.

    Raises:
        KDError: if a folder is missing or empty, or a case has no ground truth or one with another geometry or labels;
            lists every such case.
    """
    ending = dataset_json["file_ending"]
    cases = cases_in(images, ending)
    if not truths.is_dir():
        raise KDError(f"-gt {truths} is not a folder.")
    without = [case for case in cases if not (truths / f"{case}{ending}").is_file()]
    if without:
        shown = [f"{case}: {truths / (case + ending)} does not exist" for case in without]
        raise KDError(listing(f"{len(without)} of {len(cases)} images have no ground truth:", shown))
    reader = reader_of(plans or {}, dataset_json)
    expected = file_per_channel(reader, dataset_json)
    lacking = channel_problems(images, ending, expected)
    if lacking:
        raise KDError(listing(f"-i {images} has cases with missing or additional channels:", lacking))
    channels = expected or 0
    if expected is None:
        channels = len({file.name[-len(ending) - 5 :] for file in images.glob(f"{glob.escape(cases[0])}_????{ending}")})
    image_set = ImageSet(images, truths, tuple(cases), channels, ending, reader)
    problems = [problem for case in cases if (problem := _problem(case, image_set, dataset_json))]
    if problems:
        title = f"{len(problems)} of {len(cases)} cases do not fit (images {images}, ground truth {truths}):"
        raise KDError(listing(title, problems))
    return image_set


def predict(
    model: TrainedModel,
    image_set: ImageSet,
    output: Path,
    device: torch.device,
    runs_in: RunsIn = STOCK,
) -> str:
    """Predict with nnU-Net, as an ensemble of the model's trained folds. Does nothing if all predictions already exist
    and were made with the same checkpoints.

    Args:
        model: with at least one trained fold.
        image_set: what to predict.
        output: folder for the predictions; created if needed.
        device: to predict on.
        runs_in: what the network runs in on a CPU.

    Returns:
        What the network ran in, in words; empty for stock nnU-Net, and if nothing had to be done.

    Raises:
        KDError: if nnU-Net cannot predict with this model; gives nnU-Net's reason.
    """
    if model.unpredictable:
        raise KDError(model.unpredictable)
    output.mkdir(parents=True, exist_ok=True)
    ending = model.dataset_json["file_ending"]
    stamp: dict[str, Any] = {
        "checkpoints": {fold.name: sha256(fold.checkpoint) for fold in model.predicting_folds},
        "images": {
            file: [os.stat(file).st_size, os.stat(file).st_mtime_ns]
            for case in image_set.cases
            for file in image_set.image_files(case)
        },
    }
    if runs_in.runtime is not None:
        stamp |= {"runtime": runs_in.runtime, "precision": runs_in.precision}
    files = [output / f"{case}{ending}" for case in image_set.cases]
    if _read(output / STAMP) == stamp and all(file.is_file() for file in files):
        return ""
    (output / STAMP).unlink(missing_ok=True)
    if model.configuration.endswith("cascade_fullres"):
        raise KDError("not predicted, because a cascade needs the predictions of its previous stage")
    chosen = ""
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            predictor = (predictor_of if runs_in.runtime is None else fast_predictor_of)(model, device)
            if runs_in.runtime is not None:
                checkpoints = [fold.checkpoint for fold in model.predicting_folds]
                chosen = str(use_runtime(predictor, checkpoints, runs_in.runtime, runs_in.precision))
            predictor.predict_from_files_sequential(
                [image_set.image_files(case) for case in image_set.cases],
                [str(output / case) for case in image_set.cases],
            )
    except Exception as error:  # nnU-Net may raise anything; go on with the other models
        reason = str(error) if isinstance(error, KDError) else f"{type(error).__name__}: {error}"
        raise KDError(f"nnU-Net cannot predict with it: {reason}") from error
    write_text(output / STAMP, json.dumps(stamp, indent=2) + "\n")
    return chosen


def image_jobs(model: TrainedModel, image_set: ImageSet, output: Path, tolerance: float) -> list[ScoringJob]:
    """The scoring jobs for predictions of a test set; see `scores.ScoringJob`."""
    structures = structures_of(model.plans, model.dataset_json)
    ending, reader = model.dataset_json["file_ending"], reader_of(model.plans, model.dataset_json)
    ignore = PlansManager(model.plans).get_label_manager(model.dataset_json).ignore_label
    folds = "+".join(fold.name for fold in model.predicting_folds)
    return [
        ScoringJob(
            model.name,
            folds,
            case,
            image_set.truths / f"{case}{ending}",
            output / f"{case}{ending}",
            structures,
            ignore,
            reader,
            tolerance,
            None,
        )
        for case in image_set.cases
    ]


def _problem(case: str, image_set: ImageSet, dataset_json: dict[str, Any]) -> str:
    """Why a case cannot be scored, in words; empty if it can."""
    reader = image_set.reader()
    try:
        for file in (*image_set.image_files(case), str(image_set.truths / f"{case}{image_set.ending}")):
            check_complete(Path(file))
        image, image_properties = reader.read_images(image_set.image_files(case))
        truth, truth_properties = reader.read_seg(str(image_set.truths / f"{case}{image_set.ending}"))
    except Exception as error:  # a reader may raise anything
        return f"{case}: cannot be read: {error}"
    difference = geometry_difference(image, truth, (image_properties, truth_properties))
    if difference:
        return f"{case}: image and ground truth differ: {difference}"
    known = {int(v) for value in dataset_json["labels"].values() for v in np.atleast_1d(value)}
    strange = sorted({int(value) for value in np.unique(truth)} - known)
    if strange:
        return f"{case}: the ground truth has labels {strange}, the models know {sorted(known)}"
    return ""


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError):
        return None
