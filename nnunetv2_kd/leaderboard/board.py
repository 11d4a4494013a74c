"""Everything that the tables and the page show of one dataset, put together."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nnunetv2_kd.benchmark.cost import ModelCost
from nnunetv2_kd.leaderboard import origin, statistics
from nnunetv2_kd.leaderboard.notes import about_labels, about_reference, conventions, labels, tell_rows
from nnunetv2_kd.leaderboard.scores import BOTH_EMPTY, FAILED, FALSE_ALARM, MISSED, SCORED
from nnunetv2_kd.leaderboard.statistics import Gap
from nnunetv2_kd.nnunet.model_folder import ALL
from nnunetv2_kd.nnunet.trained_models import TrainedFold, TrainedModel, pick

ROW = ("model", "fold", "case", "structure", "state", "dice", "nsd", "hd95_mm", "note")
COUNTED = {"missed": MISSED, "false_alarms": FALSE_ALARM, "both_empty": BOTH_EMPTY, "failed": FAILED}


@dataclass
class Entry:
    """One model's line. Dice, NSD and shares in [0, 1]; nan where not known.

    Attributes:
        rank: by mean Dice; None where nothing was scored.
        label: a short name that no other model of the board has.
        teacher, alone: names of its teacher and of the same student without one, where they are on the board.
        marks: what a reader must know, in words.
        cases: how many were scored, on which `dice` and `mean_dice` stand.
        low, high: 95 % bootstrap interval of the mean Dice.
        measured: values that `nsd` and `hd95_mm` stand on.
        difference: of the mean Dice to the reference's, on shared cases; `p` and `p_holm` of the signed-rank test.
        rank_shares: of the resamples, per rank, best first; empty where not compared.
    """

    model: TrainedModel
    kind: str
    cost: ModelCost
    rank: int | None = None
    label: str = ""
    teacher: str | None = None
    alone: str | None = None
    marks: list[str] = field(default_factory=list)
    folds: str = ""
    cases: int = 0
    mean_dice: float = float("nan")
    low: float = float("nan")
    high: float = float("nan")
    dice: dict[str, float] = field(default_factory=dict)
    nsd: float = float("nan")
    hd95_mm: float = float("nan")
    measured: tuple[int, int] = (0, 0)
    counts: dict[str, int] = field(default_factory=dict)
    difference: float = float("nan")
    p: float = float("nan")
    p_holm: float = float("nan")
    gap: Gap | None = None
    rank_shares: list[float] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.model.name


@dataclass
class Board:
    """One dataset.

    Attributes:
        entries: best first, those without any score last.
        rows: every model, fold, case and structure; see `scores`.
        structures: names, in nnU-Net's order.
        shared: the cases that all models with scores have.
        per_case: mean Dice per case, ``(models, cases)`` with names; every case of every model.
        source: where the numbers come from, in words.
        problems: what is missing or went wrong, one line each.
        conventions: how the numbers are made, one line each.
        notes: how the models were compared here, one line each.
        timed: how the models were timed; empty where they were not.
        truths, predictions, images: where the files are: a folder, by model and case, by case (one file per channel).
    """

    dataset: str
    entries: list[Entry]
    rows: pd.DataFrame
    structures: list[str]
    shared: list[str]
    per_case: pd.DataFrame
    reference: str
    source: str
    tolerance: float
    problems: list[str]
    conventions: list[str]
    notes: list[str]
    timed: str = ""
    truths: Path | None = None
    predictions: dict[tuple[str, str], Path] = field(default_factory=dict)
    images: dict[str, list[str]] = field(default_factory=dict)

    @property
    def compared(self) -> list[Entry]:
        return [entry for entry in self.entries if entry.rank is not None]


def make_board(
    models: Sequence[TrainedModel],
    rows: Sequence[dict[str, Any]],
    costs: dict[str, ModelCost],
    *,
    structures: list[str],
    source: str,
    tolerance: float,
    problems: list[str],
    reference: str | None = None,
    teacher: str | None = None,
    on_own_validation: bool = True,
) -> Board:
    """Means, intervals, tests, ranks and gaps of the models of one dataset.

    Args:
        models: all of one dataset, and of one set of structures.
        rows: from `scores`.
        costs: by the models' names.
        structures: names.
        source: where the numbers come from, in words.
        tolerance: of the normalised surface Dice in mm.
        problems: found so far; more are added.
        reference: name of the model that the others are tested against; None: the best student alone, else the best.
        teacher: name of the teacher of all distilled students; None: told by the checkpoints.
        on_own_validation: whether the cases are the models' own validation cases, which a teacher may have seen.

    Raises:
        KDError: where `reference` or `teacher` names no model.
    """
    models = list(models)
    table = pd.DataFrame(list(rows), columns=list(ROW))
    teachers = origin.teachers_of(models)
    if teacher is not None:
        chosen = pick(models, teacher, "--teacher").name
        teachers = {m.name: chosen for m in models if m.name != chosen and m.record.get("teachers")}
    kinds = {m.name: origin.kind(m, list(teachers.values())) for m in models}
    used = {m.name: m.validated_folds if on_own_validation else m.predicting_folds for m in models}
    entries = [_entry(m, kinds[m.name], costs[m.name], table, structures) for m in models]
    for entry in entries:
        entry.folds = ", ".join(fold.name for fold in used[entry.name]) or "none"
    for entry, label in zip(entries, labels(models), strict=True):
        entry.label = label
        entry.teacher = teachers.get(entry.name)
    entries.sort(key=lambda entry: (np.isnan(entry.mean_dice), -np.nan_to_num(entry.mean_dice), entry.name))
    compared = [entry for entry in entries if not np.isnan(entry.mean_dice)]
    dice, shared = _on_shared_cases([entry.name for entry in compared], table, structures)
    notes = about_labels(models)
    chosen_reference = _reference(compared, models, reference)
    if compared:
        entry = next(entry for entry in entries if entry.name == chosen_reference)
        notes.append(about_reference(entry.label, entry.kind == origin.ALONE, reference is not None))
        _compare(compared, dice, shared, chosen_reference, models, notes)
    for entry in entries:
        _mark(entry, used, on_own_validation, problems)
    tell_rows(table, problems)
    return Board(
        dataset=models[0].dataset,
        entries=entries,
        rows=table,
        structures=structures,
        shared=shared,
        per_case=_per_case(table, [entry.name for entry in compared]),
        reference=chosen_reference,
        source=source,
        tolerance=tolerance,
        problems=problems,
        conventions=conventions(tolerance),
        notes=notes,
    )


def _entry(model: TrainedModel, kind: str, cost: ModelCost, table: pd.DataFrame, structures: list[str]) -> Entry:
    mine = table[table.model == model.name]
    entry = Entry(model, kind, cost)
    entry.counts = {name: int((mine.state == state).sum()) for name, state in COUNTED.items()}
    entry.cases = mine[mine.state != FAILED].case.nunique()
    repeated = mine[mine.duplicated(["case", "structure"])].case.nunique()
    if repeated:
        entry.marks.append(f"{repeated} cases are in several folds: every one counts in its means")
    entry.measured = (int(mine.nsd.notna().sum()), int(mine.hd95_mm.notna().sum()))
    for column, means in (("dice", entry.dice), ("nsd", {}), ("hd95_mm", {})):
        for name in structures:  # as nnU-Net averages: over cases, then over structures
            values = mine[column][mine.structure == name].to_numpy(dtype=float)
            means[name] = float(np.nanmean(values)) if not np.isnan(values).all() else float("nan")
        present = [value for value in means.values() if not np.isnan(value)]
        mean = float(np.mean(present)) if present else float("nan")
        setattr(entry, {"dice": "mean_dice"}.get(column, column), mean)
    own, cases = _on_shared_cases([model.name], table, structures)
    if cases:
        found = statistics.intervals(own)
        entry.low, entry.high = float(found.low[0]), float(found.high[0])
    return entry


def _on_shared_cases(names: list[str], table: pd.DataFrame, structures: list[str]) -> tuple[np.ndarray, list[str]]:
    """Dice ``(models, cases, structures)`` of the cases that all the models have, and these cases. A structure of a
    case that one model has no Dice for (both empty) is left out for all. A case that a model predicts with several
    folds counts once, with their mean."""
    good = table[table.model.isin(names) & (table.state != FAILED)]
    cases = good.groupby("case").model.nunique()
    failed = set(table[table.model.isin(names) & (table.state == FAILED)].case) if len(names) > 1 else set()
    shared = sorted(case for case in cases.index[cases == len(names)] if case not in failed)
    if not names or not shared:
        return np.empty((len(names), 0, len(structures))), []
    means = good.groupby(["model", "case", "structure"]).dice.mean()
    index = pd.MultiIndex.from_product([names, shared, structures])
    dice = means.reindex(index).to_numpy(dtype=float).reshape(len(names), len(shared), len(structures))
    return np.where(np.isnan(dice).any(axis=0, keepdims=True), np.nan, dice), shared


def _reference(compared: list[Entry], models: list[TrainedModel], reference: str | None) -> str:
    if reference is not None:
        return pick(models, reference, "--reference").name
    alone = [entry for entry in compared if entry.kind == origin.ALONE]
    return (alone or compared)[0].name if compared else ""


def _compare(
    compared: list[Entry],
    dice: np.ndarray,
    shared: list[str],
    reference: str,
    models: list[TrainedModel],
    notes: list[str],
) -> None:
    for rank, entry in enumerate(compared, start=1):
        entry.rank = rank
    index = {entry.name: i for i, entry in enumerate(compared)}
    notes.append(
        f"{len(shared)} cases are shared by all {len(compared)} models; differences, tests, rank shares and "
        "gaps stand on these, folds pooled."
    )
    if len(shared) < 2:
        notes.append("Fewer than two shared cases: no interval, test or rank share can be given.")
    elif len(shared) < 6:
        notes.append(f"With {len(shared)} cases no signed-rank test can reach p < 0.05, whatever the difference.")
    if not shared:
        return
    found = statistics.intervals(dice)
    shares = statistics.rank_shares(found.resampled)
    per_case = statistics.per_case(dice)
    others = [entry for entry in compared if entry.name != reference]
    for entry in compared:
        entry.rank_shares = [] if np.isnan(shares).any() else shares[index[entry.name]].tolist()
    if reference in index:
        for entry in others:
            entry.difference = float(found.mean[index[entry.name]] - found.mean[index[reference]])
            entry.p = statistics.signed_rank(per_case[index[entry.name]], per_case[index[reference]])
        for entry, p in zip(others, statistics.holm(np.array([entry.p for entry in others])), strict=True):
            entry.p_holm = float(p)
    for entry in compared:
        if entry.kind == origin.DISTILLED:
            entry.gap = _gap(entry, index, models, found)


def _gap(entry: Entry, index: dict[str, int], models: list[TrainedModel], found: statistics.Intervals) -> Gap:
    alone = origin.alone_of(entry.model, models)
    entry.alone = alone.name if alone is not None else None
    if entry.teacher not in index:
        return Gap(None, None, None, "its teacher is not among these models (put its folder beside them, or --teacher)")
    if alone is None or alone.name not in index:
        return Gap(None, None, None, "no student alone with the same plans (train it: -tr nnUNetTrainerKDBaseline)")
    gap = statistics.gap_closed(index[entry.teacher], index[alone.name], index[entry.name], found)
    budgets = (origin.budget(alone), origin.budget(entry.model))
    if None not in budgets and budgets[0] != budgets[1]:
        entry.marks.append(f"its student alone was trained for {budgets[0]} iterations, it itself for {budgets[1]}")
    return gap


def _mark(entry: Entry, used: dict[str, tuple[TrainedFold, ...]], on_own_validation: bool, problems: list[str]) -> None:
    seen = origin.seen_cases(entry.model)
    if seen and on_own_validation:
        entry.marks.append(f"teacher saw validation cases ({seen})")
    expected = {fold.name for folds in used.values() for fold in folds if fold.name != ALL}
    expected |= {fold.name for fold in entry.model.folds if fold.name != ALL}
    missing = sorted(expected - {fold.name for fold in used[entry.name]})
    if missing:
        entry.marks.append(f"missing folds: {', '.join(missing)}")
    unused = [fold for fold in entry.model.folds if fold.problem and fold not in used[entry.name]]
    problems += [f"{entry.name}, fold {fold.name}: {fold.problem}" for fold in unused]
    if entry.cost.problem:
        problems.append(f"{entry.name}: {entry.cost.problem}")
    if entry.counts["failed"]:
        entry.marks.append(f"{entry.counts['failed']} failed")


def _per_case(table: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    good = table[table.state.isin([SCORED, MISSED, FALSE_ALARM])]
    pivot = good.pivot_table(index="model", columns="case", values="dice", aggfunc="mean")
    return pivot.reindex(names)
