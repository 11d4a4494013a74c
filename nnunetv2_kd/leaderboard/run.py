"""From the names of datasets to their boards."""

from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import torch
from nnunetv2.paths import nnUNet_preprocessed

from nnunetv2_kd.benchmark.cost import ModelCost, measure, size_of
from nnunetv2_kd.errors import KDError, listing
from nnunetv2_kd.inference.device import check_device, device_name
from nnunetv2_kd.leaderboard.board import Board, make_board
from nnunetv2_kd.leaderboard.predict import ImageSet, check_images, image_jobs, predict
from nnunetv2_kd.leaderboard.scores import (
    ScoreRow,
    ScoringJob,
    Structure,
    failed_rows,
    score,
    structures_of,
    validation_jobs,
)
from nnunetv2_kd.nnunet.datasets import ground_truth_folder, trained_dataset, training_images
from nnunetv2_kd.nnunet.splits import Split, read_splits
from nnunetv2_kd.nnunet.trained_models import TrainedModel, find_models, pick

Say = Callable[[str], None]
JOBS_WORTH_A_PROCESS = 16  # starting one takes seconds


@dataclass(frozen=True)
class LeaderboardRequest:
    """What to compare; the flags of ``nnUNetv2_kd leaderboard``. ``timed``: how many cases to time every model on."""

    datasets: Sequence[str]
    device: torch.device
    configurations: list[str] | None = None
    folds: list[str] | None = None
    output: Path | None = None
    images: Path | None = None
    truths: Path | None = None
    reference: str | None = None
    teacher: str | None = None
    tolerance: float = 1.0
    timed: int = 0
    processes: int = 1


def check_request(request: LeaderboardRequest) -> None:
    """The flags fit each other and this machine.

    Raises:
        KDError: where they do not; with what to type.
    """
    if (request.images is None) != (request.truths is None):
        given, lacking = ("-i", "-gt LABELS") if request.truths is None else ("-gt", "-i IMAGES")
        raise KDError(f"{given} is given alone. Predictions are compared with ground truth: add {lacking}.")
    if request.images is not None and request.output is None:
        raise KDError("-i needs a folder to keep the predictions in: add -o FOLDER.")
    if request.images is not None and len(request.datasets) > 1:
        raise KDError(f"-i is of one dataset, -d names {len(request.datasets)}. Run the command once per dataset.")
    if not request.tolerance > 0:
        raise KDError(f"--tolerance must be greater than 0 mm, found {request.tolerance:g}.")
    if request.timed < 0:
        raise KDError(f"--time must be 0 or a number of cases, found {request.timed}.")
    if request.processes < 1:
        raise KDError(f"-np must be at least 1, found {request.processes}.")
    if request.images is not None or request.timed:
        check_device(request.device)


def make_boards(request: LeaderboardRequest, say: Say) -> list[Board]:
    """The boards of all datasets, in the order asked for.

    Args:
        request: what to compare.
        say: told what is being done, one line each.

    Raises:
        KDError: where there is nothing to compare, or images and ground truth do not fit.
    """
    check_request(request)
    names = [trained_dataset(dataset) for dataset in request.datasets]
    return [_make_board(name, request, say) for name in dict.fromkeys(names)]


def _make_board(dataset: str, request: LeaderboardRequest, say: Say) -> Board:
    models, problems = find_models(dataset, request.configurations, request.folds)
    models, structures = of_one_task(models, problems)
    for name, flag in ((request.reference, "--reference"), (request.teacher, "--teacher")):
        if name is not None:  # a name that fits none is told before hours of scoring
            pick(models, name, flag)
    say(f"{dataset}: {len(models)} models")
    image_set = None
    if request.images is not None and request.truths is not None and request.output is not None:
        image_set = check_images(request.images, request.truths, models[0].dataset_json)
        jobs, rows = _predicted(models, image_set, request, request.output / "predictions" / dataset, problems, say)
        source = f"{len(image_set.cases)} images of {request.images}, predicted by nnU-Net with all trained folds"
    else:
        jobs, rows = _validated(models, request, problems)
        source = "nnU-Net's own validation of each fold (summary.json)"
    rows += _score(jobs, request.processes, say)
    costs = {model.name: size_of(model) for model in models}
    timed = _time(models, costs, rows, image_set, request, problems, say) if request.timed else ""
    board = make_board(
        models,
        rows,
        costs,
        structures=structures,
        source=source,
        tolerance=request.tolerance,
        problems=problems,
        reference=request.reference,
        teacher=request.teacher,
        on_own_validation=image_set is None,
    )
    board.timed = timed
    board.truths = image_set.truths if image_set is not None else ground_truth_folder(dataset)
    board.predictions = {(job.model, job.case): job.prediction for job in jobs}
    board.images = {case: image_files(models[0], case, image_set) for case in sorted({job.case for job in jobs})}
    return board


def of_one_task(models: list[TrainedModel], problems: list[str]) -> tuple[list[TrainedModel], list[str]]:
    """The models of the same structures as the first; the others are problems."""
    structures: dict[str, Structure] = {}
    fitting: list[TrainedModel] = []
    for model in models:
        try:
            found = structures_of(model.plans, model.dataset_json)
        except Exception as error:  # nnU-Net's, of any kind, for a file that it did not write
            problems.append(
                f"{model.name}: plans.json or dataset.json is not nnU-Net's: {type(error).__name__}: {error}"
            )
            continue
        if not fitting or found == structures:
            fitting.append(model)
            structures = found
        else:
            problems.append(f"{model.name}: not compared: it segments {found}, {fitting[0].name} {structures}")
    if not fitting:
        raise KDError(listing(f"No model of {models[0].dataset} can be compared:", problems))
    return fitting, list(structures)


def _validated(
    models: list[TrainedModel], request: LeaderboardRequest, problems: list[str]
) -> tuple[list[ScoringJob], list[ScoreRow]]:
    """What to score of the models' own validation, and the rows of cases that are missing."""
    truths, splits = ground_truth_folder(models[0].dataset), _splits_of(models[0].dataset)
    if truths is None:
        problems.append(
            "No surface distances: no ground truth in nnUNet_preprocessed (gt_segmentations) or nnUNet_raw (labelsTr)."
        )
    jobs: list[ScoringJob] = []
    rows: list[ScoreRow] = []
    for model in models:
        more_jobs, more_rows, more_problems = validation_jobs(model, truths, splits, request.tolerance)
        jobs += more_jobs
        rows += more_rows
        problems += more_problems
    return jobs, rows


def _predicted(
    models: list[TrainedModel],
    image_set: ImageSet,
    request: LeaderboardRequest,
    output: Path,
    problems: list[str],
    say: Say,
) -> tuple[list[ScoringJob], list[ScoreRow]]:
    """Predict; what to score of it, and the rows of cases that were not predicted."""
    jobs: list[ScoringJob] = []
    rows: list[ScoreRow] = []
    for model in models:
        if not model.predicting_folds:
            continue
        say(f"predicting with {model.name}")
        folder = output / model.name
        try:
            predict(model, image_set, folder, request.device)
        except KDError as error:
            problems.append(f"{model.name}: {error}")
        for job in image_jobs(model, image_set, folder, request.tolerance):
            if job.prediction.is_file():
                jobs.append(job)
            else:
                rows += failed_rows(job.model, job.fold, job.case, job.structures, "not predicted")
    return jobs, rows


def _score(jobs: list[ScoringJob], processes: int, say: Say) -> list[ScoreRow]:
    say(f"scoring {len(jobs)} predictions")
    processes = min(processes, 1 + len(jobs) // JOBS_WORTH_A_PROCESS)
    if processes == 1:
        return [row for job in jobs for row in score(job)]
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        return [row for rows in pool.map(score, jobs, chunksize=4) for row in rows]


def _time(
    models: list[TrainedModel],
    costs: dict[str, ModelCost],
    rows: list[ScoreRow],
    image_set: ImageSet | None,
    request: LeaderboardRequest,
    problems: list[str],
    say: Say,
) -> str:
    """Times the models; returns in words how."""
    scored = sorted({row["case"] for row in rows})
    files = [image_files(models[0], case, image_set) for case in scored]
    cases = [channels for channels in files if channels][: request.timed]
    if not cases:
        problems.append("Not timed: no image of the scored cases was found (nnUNet_raw, imagesTr).")
        return ""
    say(f"timing on {len(cases)} cases")
    measure([model for model in models if model.predicting_folds], costs, cases, request.device)
    return (
        f"ms: median of {len(cases)} cases on {device_name(request.device)}, from image to segmentation, one fold, "
        "nnU-Net's mirroring and sliding window, models taking turns. Peak memory: "
        + ("CUDA memory allocated." if request.device.type == "cuda" else "of the whole process with Python and torch.")
    )


def image_files(model: TrainedModel, case: str, image_set: ImageSet | None = None) -> list[str]:
    """Files of the channels of a case; empty where they are not on this machine."""
    if image_set is not None:
        return image_set.image_files(case)
    return training_images(model.dataset, case, model.dataset_json["file_ending"])


def _splits_of(dataset: str) -> list[Split]:
    return read_splits(Path(nnUNet_preprocessed) / dataset) if nnUNet_preprocessed.is_set() else []
