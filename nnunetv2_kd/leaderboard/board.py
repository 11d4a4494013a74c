"""A dataset's models, ranked and compared, with everything that the tables and the page show."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from nnunetv2_kd.benchmark.cost import ModelCost
from nnunetv2_kd.leaderboard.compare import (
    NO_TEACHER,
    Comparison,
    Distilled,
    ModelScores,
    SharedCases,
    case_means,
    compare,
    model_scores,
    shared_cases,
)
from nnunetv2_kd.leaderboard.evaluate import Evaluation, evaluate
from nnunetv2_kd.leaderboard.origin import ALONE, DISTILLED, Origin, iterations, origins_of, seen_cases
from nnunetv2_kd.leaderboard.request import LeaderboardRequest, Say, check_request
from nnunetv2_kd.leaderboard.scores import FAILED
from nnunetv2_kd.leaderboard.seeds import Seeds, pool_seeds, row_of
from nnunetv2_kd.leaderboard.short_names import explain_short_names, short_names
from nnunetv2_kd.leaderboard.statistics import pareto
from nnunetv2_kd.nnunet.datasets import trained_dataset
from nnunetv2_kd.nnunet.model_folder import ALL
from nnunetv2_kd.nnunet.trained_models import TrainedFold, TrainedModel, pick
from nnunetv2_kd.trainers.baseline import baseline_command

SAW_VALIDATION_CASES = "teacher saw validation cases"


@dataclass(frozen=True)
class Entry:
    """One model's line.

    Attributes:
        short_name: unique on the board.
        kind: see `origin.Origin`.
        folds: the folds that were scored, or that predicted the images together.
        rank: by mean Dice; None if nothing was scored.
        teacher, alone: names of its teacher and of the same student without one, if they are on the board.
        warnings: what a reader must know, in words.
        seeds: the trainings behind the line, which differ only in their seed; None: a single training.
    """

    model: TrainedModel
    short_name: str
    kind: str
    folds: tuple[TrainedFold, ...]
    cost: ModelCost
    scores: ModelScores
    comparison: Comparison
    rank: int | None
    teacher: str | None
    alone: str | None
    warnings: list[str]
    seeds: Seeds | None = None

    @property
    def name(self) -> str:
        return self.model.name


@dataclass(frozen=True)
class Board:
    """One dataset.

    Attributes:
        evaluation: the scores of its rows, and where they come from.
        every_score: the scores of every training, if rows combine several.
        entries: best first, those without a score last.
        reference: name of the model that the others are tested against; empty if no model has a score.
        shared: the cases that all scored models have.
        case_means: mean Dice per case, ``(models, cases)`` with names, for every case of every model.
        notes: how the models were compared here, one line each.
        problems: what is missing or went wrong, one line each.
    """

    evaluation: Evaluation
    every_score: pd.DataFrame
    entries: list[Entry]
    reference: str
    shared: list[str]
    case_means: pd.DataFrame
    notes: list[str]
    problems: list[str]

    @property
    def dataset(self) -> str:
        return self.evaluation.dataset

    @property
    def ranked(self) -> list[Entry]:
        """The entries with a score."""
        return [entry for entry in self.entries if entry.rank is not None]

    def pareto_front(self, cost: Callable[[Entry], float | None]) -> list[Entry]:
        """The Pareto front of Dice and this cost: the models that no other beats in both, cheapest first."""
        costs = np.array([cost(entry) for entry in self.ranked], dtype=float)  # None becomes nan
        front = pareto(costs, np.array([entry.scores.mean_dice for entry in self.ranked]))
        return [self.ranked[i] for i in np.argsort(costs, kind="stable") if front[i]]


def make_boards(request: LeaderboardRequest, say: Say) -> list[Board]:
    """The boards of all datasets, in the order asked for.

    Args:
        request: what to compare.
        say: called with progress messages, one line each.

    Raises:
        KDError: if there is nothing to compare, or images and ground truth do not fit.
    """
    check_request(request)
    datasets = dict.fromkeys(trained_dataset(dataset) for dataset in request.datasets)
    return [
        make_board(evaluate(name, request, say), request.reference, request.teacher, request.every_seed)
        for name in datasets
    ]


def make_board(
    evaluation: Evaluation, reference: str | None = None, teacher: str | None = None, every_seed: bool = False
) -> Board:
    """Rank and compare.

    Args:
        evaluation: of one dataset.
        reference: name of the model that the others are tested against; None: the student alone that most are compared
            with, or the best model.
        teacher: name of the teacher of all distilled students; None: taken from the checkpoints.
        every_seed: whether every training gets a row of its own.

    Raises:
        KDError: if `reference` or `teacher` names no model.
    """
    every_score, every_model = evaluation.scores, evaluation.models
    evaluation, seeds = (evaluation, {}) if every_seed else pool_seeds(evaluation)
    of_one_runtime = [model for model in every_model if model.runs_in == every_model[0].runs_in]
    reference, teacher = (
        row_of(pick(among, name, flag).name, seeds) if name is not None else None
        for name, flag, among in ((reference, "--reference", every_model), (teacher, "--teacher", of_one_runtime))
    )
    models = evaluation.models
    names, origins = short_names(models, seeds), origins_of(models, teacher)
    folds = {m.name: m.validated_folds if evaluation.is_validation else m.predicting_folds for m in models}
    scores = {m.name: model_scores(evaluation.scores, m.name, evaluation.structures) for m in models}
    ranks = _ranks(scores)
    base = _reference(list(ranks), origins, models, reference)
    shared = shared_cases(evaluation.scores, list(ranks), evaluation.structures)
    distilled = {m.name: _sides(m, origins[m.name]) for m in models if origins[m.name].kind == DISTILLED}
    comparisons = compare(shared, base, distilled)
    entries = []
    for model in sorted(models, key=lambda m: (ranks.get(m.name, len(models)), m.name)):
        origin, comparison = origins[model.name], comparisons.get(model.name, Comparison())
        has_gap = comparison.gap is not None and {origin.teacher, origin.alone_name} <= {*ranks}
        warnings = [
            *([model.apart] if model.apart else ()),
            *(_repeated_cases(scores[model.name]) if model.name not in seeds else ()),
            *(_unequal_training(model, origin.alone) if has_gap else ()),
            *(origin.unequal if origin.alone is None else ()),
            *(_seen_cases(model) if evaluation.is_validation else ()),
            *(_missing_folds(model, folds, models) if not model.part else ()),
            *_failed(scores[model.name]),
        ]
        entries.append(
            Entry(
                model=model,
                short_name=names[model.name],
                kind=origin.kind,
                folds=folds[model.name],
                cost=evaluation.costs[model.name],
                scores=scores[model.name],
                comparison=comparison,
                rank=ranks.get(model.name),
                teacher=origin.teacher,
                alone=origin.alone_name,
                warnings=warnings,
                seeds=seeds.get(model.name),
            )
        )
    return Board(
        evaluation=evaluation,
        every_score=every_score,
        entries=entries,
        reference=base,
        shared=shared.cases,
        case_means=case_means(evaluation.scores, list(ranks)),
        notes=_notes(evaluation, entries, base, reference is not None, shared),
        problems=[*evaluation.problems, *_model_problems(entries), *_score_problems(evaluation.scores)],
    )


def _sides(model: TrainedModel, origin: Origin) -> Distilled:
    """What a distilled student is compared with, and how to get what is missing."""
    fold = next(fold for fold in model.folds if fold.record is not None)
    line = baseline_command(fold.record, fold.folder) if fold.record is not None else ""
    several = "it has several teachers: choose one with --teacher NAME"
    return Distilled(
        teacher=origin.teacher,
        alone=origin.alone_name,
        no_teacher=several if origin.several_teachers else NO_TEACHER,
        no_alone=f"no student alone had the same training (train it: {line})",
    )


def _ranks(scores: Mapping[str, ModelScores]) -> dict[str, int]:
    """The rank of every model with a score, best first; ties are ordered by name."""
    scored = [name for name in scores if not np.isnan(scores[name].mean_dice)]
    scored.sort(key=lambda name: (-scores[name].mean_dice, name))
    return {name: rank for rank, name in enumerate(scored, start=1)}


def _reference(
    ranked: Sequence[str], origins: Mapping[str, Origin], models: list[TrainedModel], reference: str | None
) -> str:
    if reference is not None:
        return pick(models, reference, "--reference").name
    alone = [name for name in ranked if origins[name].kind == ALONE]
    students = Counter(origin.alone_name for origin in origins.values())
    alone.sort(
        key=lambda name: -students[name]
    )  # the one that most students are compared with; if there are several, the best of them
    return next(iter([*alone, *ranked]), "")


def _notes(
    evaluation: Evaluation, entries: Sequence[Entry], reference: str, is_chosen: bool, shared: SharedCases
) -> list[str]:
    """How the models were compared here."""
    notes = explain_short_names(evaluation.models)
    if any(entry.seeds for entry in entries):
        notes.append(
            "Trainings that differ only in their seed are one row, the mean over seeds ± their standard deviation; "
            "--every-seed shows each."
        )
    if not shared.models:
        return notes
    base = next(entry for entry in entries if entry.name == reference)
    why = (
        "the student alone that most students are compared with"
        if base.kind == ALONE
        else "as there is no student alone, the best model"
    )
    why = "chosen with --reference" if is_chosen else f"{why}; choose with --reference NAME"
    notes.append(f"Reference of the differences and tests: {base.short_name} ({why}).")
    notes.append(
        f"{len(shared.cases)} cases are shared by all {len(shared.models)} models; differences, tests, rank shares and "
        "gaps are computed on these, with folds pooled."
    )
    if len(shared.cases) < 2:
        notes.append(
            "Fewer than two shared cases: there are no intervals, tests or rank shares." + _on_one_fold(entries)
        )
    elif len(shared.cases) < 6:
        notes.append(f"With {len(shared.cases)} cases, no signed-rank test can reach p < 0.05.")
    return notes


def _on_one_fold(entries: Sequence[Entry]) -> str:
    """Advice to compare on the fold that most models have; empty if all models have the same folds."""
    counts = Counter(fold.name for entry in entries for fold in entry.folds if fold.name != ALL)
    if len(counts) < 2:
        return ""
    [(fold, _)] = counts.most_common(1)
    return f" The models were validated on different folds: compare them on one with -f {fold}."


def _repeated_cases(scores: ModelScores) -> Iterator[str]:
    if scores.repeated_cases:
        yield f"{scores.repeated_cases} cases are in several folds; the means count each of them once per fold"


def _unequal_training(model: TrainedModel, alone: TrainedModel | None) -> Iterator[str]:
    mine, other = iterations(model), iterations(alone) if alone is not None else None
    if None not in (mine, other) and mine != other:
        yield f"it was trained for {mine} iterations, its student alone for {other}"


def _seen_cases(model: TrainedModel) -> Iterator[str]:
    if seen := seen_cases(model):
        yield f"{SAW_VALIDATION_CASES} ({seen})"


def _missing_folds(
    model: TrainedModel, folds: Mapping[str, tuple[TrainedFold, ...]], models: Sequence[TrainedModel]
) -> Iterator[str]:
    """Folds that this model lacks, out of those that any model was scored with or that this one has begun. Shares of
    the training cases do not count as folds that others lack."""
    whole = [folds[other.name] for other in models if not other.part]
    expected = {fold.name for of_model in (*whole, model.folds) for fold in of_model} - {ALL}
    missing = sorted(expected - {fold.name for fold in folds[model.name]})
    if missing:
        yield f"missing folds: {', '.join(missing)}"


def _failed(scores: ModelScores) -> Iterator[str]:
    if scores.counts["failed"]:
        yield f"{scores.counts['failed']} failed"


def _model_problems(entries: Sequence[Entry]) -> Iterator[str]:
    for entry in entries:
        unused = [fold for fold in entry.model.folds if fold.problem and fold not in entry.folds]
        yield from (f"{entry.model.folder.name}, fold {fold.name}: {fold.problem}" for fold in unused)
        if entry.cost.problem:
            yield f"{entry.name}: {entry.cost.problem}"


def _score_problems(scores: pd.DataFrame) -> Iterator[str]:
    """The notes in the scores, one line per model and note."""
    for (model, note), group in scores[scores.note != ""].groupby(["model", "note"], sort=False):
        state = "failed: " if (group.state == FAILED).all() else ""
        cases = sorted(group.case.unique())
        shown = ", ".join(cases[:3]) + (f" and {len(cases) - 3} more" if len(cases) > 3 else "")
        yield f"{model}: {shown}: {state}{note}"
