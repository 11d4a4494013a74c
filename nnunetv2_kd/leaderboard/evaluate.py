"""From the name of a dataset to the scores, costs and files of its models."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path

import pandas as pd
from nnunetv2.paths import nnUNet_preprocessed

from nnunetv2_kd.benchmark.cost import ModelCost, measure_costs, model_size
from nnunetv2_kd.benchmark.timing import TimedModel
from nnunetv2_kd.errors import KDError, listing
from nnunetv2_kd.inference.device import device_name
from nnunetv2_kd.interruption import shield_children_from_interrupts
from nnunetv2_kd.leaderboard.fold_groups import split_students
from nnunetv2_kd.leaderboard.predict import ImageSet, check_images, image_jobs, predict
from nnunetv2_kd.leaderboard.request import STOCK, LeaderboardRequest, RunsIn, Say
from nnunetv2_kd.leaderboard.scores import (
    SCORE_COLUMNS,
    ScoreRow,
    ScoringJob,
    Structure,
    failed_rows,
    score,
    structures_of,
    validation_jobs,
)
from nnunetv2_kd.nnunet.datasets import ground_truth_folder, training_images
from nnunetv2_kd.nnunet.images import reader_of, reading_problems
from nnunetv2_kd.nnunet.splits import Split, read_splits
from nnunetv2_kd.nnunet.teacher_labels import agreement_note
from nnunetv2_kd.nnunet.trained_models import TrainedModel, find_models, pick

JOBS_WORTH_A_PROCESS = 16  # starting a process takes seconds


@dataclass(frozen=True)
class Evaluation:
    """The models of one dataset, scored.

    Attributes:
        models: the models that have the same structures.
        structures: names, in nnU-Net's order.
        scores: every model, fold, case and structure; columns as in `scores.SCORE_COLUMNS`.
        costs: by model name.
        source: where the scores come from, in words.
        tolerance: of the normalised surface Dice, in mm.
        timing: how the models were timed, in words; empty if they were not.
        is_validation: whether the cases are the models' own validation cases, which a teacher may have seen.
        agreement: what Dice is if a teacher labelled validation cases, in words; empty if people labelled all.
        truths, predictions, images: the folder of the ground truth, the predictions' files by model and case, and the
            images' files by case (one per channel).
        problems: what is missing or went wrong, one line each.
    """

    dataset: str
    models: list[TrainedModel]
    structures: list[str]
    scores: pd.DataFrame
    costs: Mapping[str, ModelCost]
    source: str
    tolerance: float
    timing: str = ""
    is_validation: bool = True
    agreement: str = ""
    truths: Path | None = None
    predictions: Mapping[tuple[str, str], Path] = field(default_factory=dict)
    images: Mapping[str, list[str]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


@dataclass
class _ToScore:
    """Jobs to score, rows for cases that cannot be scored, and what is missing, one line each."""

    jobs: list[ScoringJob] = field(default_factory=list)
    failed: list[ScoreRow] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def evaluate(dataset: str, request: LeaderboardRequest, say: Say) -> Evaluation:
    """Score every model of a dataset, and time the models if asked to.

    Args:
        dataset: its full name.
        request: checked, see `check_request`.
        say: called with progress messages, one line each.

    Raises:
        KDError: if there is nothing to compare, or images and ground truth do not fit.
    """
    found, problems = find_models(dataset, request.configurations, request.folds)
    splits = _splits_of(dataset)
    apart = [one for model in found for one in split_students(model, splits)]
    alike, structures, unlike = select_same_task(apart, problems)
    models, runs_in = rows_of(alike, request.runs_in())
    for name, flag, among in ((request.reference, "--reference", models), (request.teacher, "--teacher", alike)):
        if name is not None:  # a name that fits no model is refused now, not after hours of scoring
            pick(among, name, flag)
    counted = f"{len(alike)} model{'s' * (len(alike) != 1)}"
    say(f"{dataset}: {counted}" + (f", {len(models)} rows" if len(models) > len(alike) else ""))
    image_set, agreement = None, ""
    if request.images is not None and request.truths is not None and request.output is not None:
        image_set = check_images(request.images, request.truths, models[0].dataset_json, models[0].plans)
        to_score = _prediction_work(models, runs_in, image_set, request, request.output / "predictions" / dataset, say)
        how = f"predicted by nnU-Net {_computed_in(runs_in)}with all trained folds"
        source = f"{len(image_set.cases)} images of {request.images}, {how}"
    else:
        to_score = _validation_work([m for m in models if runs_in[m.name].precision == "f32"], request.tolerance)
        to_score.problems += [
            f"{name}: not scored: nnU-Net's validation was predicted in f32. Add -i IMAGES -gt LABELS"
            for name, row in runs_in.items()
            if row.precision != "f32"
        ]
        source = "nnU-Net's own validation of each fold (summary.json)"
        agreement = agreement_note(models[0].dataset_json, sorted({job.case for job in to_score.jobs}))
    rows = to_score.failed + _score(to_score.jobs, request.processes, say)
    costs = {model.name: model_size(model) for model in models}
    scored = [_image_files(models[0], case, image_set) for case in sorted({row["case"] for row in rows})]
    costs, timing, not_timed = (
        _time_models(models, runs_in, costs, scored, request, say) if request.timed else (costs, "", [])
    )
    return Evaluation(
        dataset=dataset,
        models=models,
        structures=structures,
        scores=pd.DataFrame(rows, columns=list(SCORE_COLUMNS)),
        costs=costs,
        source=f"{source}: {agreement}" if agreement else source,
        tolerance=request.tolerance,
        timing=timing,
        is_validation=image_set is None,
        agreement=agreement,
        truths=image_set.truths if image_set is not None else ground_truth_folder(dataset),
        predictions={(job.model, job.case): job.prediction for job in to_score.jobs},
        images={case: _image_files(models[0], case, image_set) for case in sorted({job.case for job in to_score.jobs})},
        problems=[*problems, *unlike, *to_score.problems, *not_timed],
    )


def select_same_task(
    models: Sequence[TrainedModel], problems: Sequence[str] = ()
) -> tuple[list[TrainedModel], list[str], list[str]]:
    """The models that have the same structures as the first.

    Args:
        models: of one dataset.
        problems: found so far, for the message of an error.

    Returns:
        These models, their structures, and why the others are not compared, one line each.

    Raises:
        KDError: if none can be compared.
    """
    structures: dict[str, Structure] = {}
    alike: list[TrainedModel] = []
    unlike: list[str] = []
    for model in models:
        try:
            found = structures_of(model.plans, model.dataset_json)
        except Exception as error:  # nnU-Net may raise anything on a file that it did not write
            unlike.append(f"{model.name}: plans.json or dataset.json is not nnU-Net's: {type(error).__name__}: {error}")
            continue
        if not alike or found == structures:
            alike.append(model)
            structures = found
        else:
            unlike.append(f"{model.name}: not compared: it segments {found}, {alike[0].name} {structures}")
    if not alike:
        raise KDError(listing(f"No model of {models[0].dataset} can be compared:", [*problems, *unlike]))
    return alike, list(structures), unlike


def rows_of(models: Sequence[TrainedModel], runs_in: Sequence[RunsIn]) -> tuple[list[TrainedModel], dict[str, RunsIn]]:
    """One row per model and runtime.

    Returns:
        The models, with the runtime in their names if there are several, and what each runs in, by name.
    """
    rows = [
        (replace(model, runs_in=str(row)) if len(runs_in) > 1 else model, row) for model in models for row in runs_in
    ]
    return [model for model, _ in rows], {model.name: row for model, row in rows}


def _validation_work(models: Sequence[TrainedModel], tolerance: float) -> _ToScore:
    """What to score of the models' own validation."""
    truths, splits = ground_truth_folder(models[0].dataset), _splits_of(models[0].dataset)
    to_score = _ToScore()
    if truths is None:
        to_score.problems.append(
            "No surface distances: no ground truth in nnUNet_preprocessed (gt_segmentations) or nnUNet_raw (labelsTr)."
        )
    for model in models:
        jobs, failed, problems = validation_jobs(model, truths, splits, tolerance)
        to_score.jobs += jobs
        to_score.failed += failed
        to_score.problems += problems
    return to_score


def _prediction_work(
    models: Sequence[TrainedModel],
    runs_in: Mapping[str, RunsIn],
    image_set: ImageSet,
    request: LeaderboardRequest,
    output: Path,
    say: Say,
) -> _ToScore:
    """Predict other images, to be scored."""
    to_score = _ToScore()
    for model in models:
        if not model.predicting_folds:
            continue
        say(f"predicting with {model.name}")
        folder = output / model.name.replace(" ", "_")
        try:
            chosen = predict(model, image_set, folder, request.device, runs_in[model.name])
            if chosen:
                say(f"it ran in {chosen}")
            predicted = True
        except KDError as error:
            to_score.problems.append(f"{model.name}: {error}")
            predicted = False  # the files in the folder are from another checkpoint
        for job in image_jobs(model, image_set, folder, request.tolerance):
            if predicted and job.prediction.is_file():
                to_score.jobs.append(job)
            else:
                to_score.failed += failed_rows(job.model, job.fold, job.case, job.structures, "not predicted")
    return to_score


def _score(jobs: Sequence[ScoringJob], processes: int, say: Say) -> list[ScoreRow]:
    say(f"scoring {len(jobs)} predictions")
    processes = min(processes, 1 + len(jobs) // JOBS_WORTH_A_PROCESS)
    if processes == 1:
        return [row for job in jobs for row in score(job)]
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        with shield_children_from_interrupts():
            scored = pool.map(score, jobs, chunksize=4)
        try:
            return [row for rows in scored for row in rows]
        except KeyboardInterrupt:
            pool.shutdown(cancel_futures=True)
            raise


def _time_models(
    models: Sequence[TrainedModel],
    runs_in: Mapping[str, RunsIn],
    costs: dict[str, ModelCost],
    images: Sequence[list[str]],
    request: LeaderboardRequest,
    say: Say,
) -> tuple[dict[str, ModelCost], str, list[str]]:
    """The costs with times and memory; how they were measured, in words; and what was not timed, one line each."""
    cases = [channels for channels in images if channels][: request.timed]
    if not cases:
        return costs, "", ["Not timed: no image of the scored cases was found (nnUNet_raw, imagesTr)."]
    reader = reader_of(models[0].plans, models[0].dataset_json)
    unreadable = reading_problems({Path(files[0]).name: files for files in cases}, reader, 0)
    if unreadable:
        return costs, "", [f"Not timed: {problem}" for problem in unreadable]
    say(f"timing on {len(cases)} cases")
    rows = [
        TimedModel(model, runtime=runs_in[model.name].runtime, precision=runs_in[model.name].precision)
        for model in models
        if model.predicting_folds
    ]
    timed = measure_costs(rows, costs, cases, request.device)
    timing = (
        f"ms: median of {len(cases)} cases on {device_name(request.device)}, from image to segmentation, one fold, "
        f"nnU-Net's mirroring and sliding window, {_computed_in(runs_in)}models taking turns. Peak memory: "
        + ("CUDA memory allocated." if request.device.type == "cuda" else "of the whole process with Python and torch.")
    )
    return timed, timing, []


def _computed_in(runs_in: Mapping[str, RunsIn]) -> str:
    """What the networks ran in, in words; empty for stock nnU-Net's PyTorch."""
    rows = [str(row) for row in dict.fromkeys(runs_in.values()) if row != STOCK]
    return f"in {' and '.join(rows)}, " if rows else ""


def _image_files(model: TrainedModel, case: str, image_set: ImageSet | None) -> list[str]:
    """The channel files of a case; empty if they are not on this machine."""
    if image_set is not None:
        return image_set.image_files(case)
    return training_images(model.dataset, case, model.dataset_json["file_ending"])


def _splits_of(dataset: str) -> list[Split]:
    return read_splits(Path(nnUNet_preprocessed) / dataset) if nnUNet_preprocessed.is_set() else []
