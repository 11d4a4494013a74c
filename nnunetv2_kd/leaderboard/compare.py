"""Means of each model, and comparisons of models on the cases that they share. Works on tables of scores and names of
models, never on files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from nnunetv2_kd.leaderboard import statistics
from nnunetv2_kd.leaderboard.scores import BOTH_EMPTY, FAILED, FALSE_ALARM, MISSED, SCORED
from nnunetv2_kd.leaderboard.statistics import Gap

NAN = float("nan")
COUNTED = {"missed": MISSED, "false_alarms": FALSE_ALARM, "both_empty": BOTH_EMPTY, "failed": FAILED}


@dataclass(frozen=True)
class ModelScores:
    """Means of one model over all of its cases. Dice and NSD in [0, 1]; nan where not known.

    Attributes:
        cases: number of scored cases, over which `dice` and `mean_dice` are means.
        repeated_cases: how many of them are in several folds.
        low, high: 95 % bootstrap interval of the mean Dice.
        measured: how many values `nsd` and `hd95_mm` are means of.
        counts: number of structures of cases in each state, see `scores`.
    """

    cases: int
    repeated_cases: int
    mean_dice: float
    low: float
    high: float
    dice: dict[str, float]
    nsd: float
    hd95_mm: float
    measured: tuple[int, int]
    counts: dict[str, int]


@dataclass(frozen=True)
class Comparison:
    """One model against the others, on the cases that all share; nan, empty or None if not compared.

    Attributes:
        difference: mean Dice minus the reference's; `p` and `p_holm` are from the signed-rank test.
        rank_shares: per rank, best first, the share of resamples in which the model has it.
        gap: for a distilled student, the gap closed.
    """

    difference: float = NAN
    p: float = NAN
    p_holm: float = NAN
    rank_shares: list[float] = field(default_factory=list)
    gap: Gap | None = None


NO_TEACHER = "its teacher is not among these models (put its folder beside them, or --teacher NAME)"


@dataclass(frozen=True)
class Distilled:
    """What a distilled student is compared with.

    Attributes:
        teacher, alone: names of its teacher and of the same student without one; None if there is none.
        no_teacher, no_alone: what to say if one is missing.
    """

    teacher: str | None
    alone: str | None
    no_teacher: str = NO_TEACHER
    no_alone: str = "no student alone had the same training"


@dataclass(frozen=True)
class SharedCases:
    """The cases that several models share, and their Dice.

    Attributes:
        models: names.
        cases: names, sorted.
        dice: ``(models, cases, structures)``. If one model has no Dice for a structure of a case (both empty), it is
            nan for all.
    """

    models: list[str]
    cases: list[str]
    dice: np.ndarray


def model_scores(scores: pd.DataFrame, model: str, structures: list[str]) -> ModelScores:
    """Means as in nnU-Net: over cases, then over structures.

    Args:
        scores: columns as in `scores.SCORE_COLUMNS`.
        model: the model whose rows to use.
        structures: names.
    """
    mine = scores[scores.model == model]
    means = {column: _means(mine, column, structures) for column in ("dice", "nsd", "hd95_mm")}
    own = shared_cases(scores, [model], structures)
    low = high = NAN
    if own.cases:
        found = statistics.intervals(own.dice)
        low, high = float(found.low[0]), float(found.high[0])
    return ModelScores(
        cases=mine[mine.state != FAILED].case.nunique(),
        repeated_cases=mine[mine.duplicated(["case", "structure"])].case.nunique(),
        mean_dice=_mean(means["dice"]),
        low=low,
        high=high,
        dice=means["dice"],
        nsd=_mean(means["nsd"]),
        hd95_mm=_mean(means["hd95_mm"]),
        measured=(int(mine.nsd.notna().sum()), int(mine.hd95_mm.notna().sum())),
        counts={name: int((mine.state == state).sum()) for name, state in COUNTED.items()},
    )


def shared_cases(scores: pd.DataFrame, models: list[str], structures: list[str]) -> SharedCases:
    """The cases for which all models have scores. A case that a model predicts with several folds counts once, with the
    mean over them."""
    mine = scores[scores.model.isin(models)]
    good = mine[mine.state != FAILED]
    counts = good.groupby("case").model.nunique()
    failed = set(mine[mine.state == FAILED].case) if len(models) > 1 else set()
    cases = sorted(case for case in counts.index[counts == len(models)] if case not in failed)
    if not models or not cases:
        return SharedCases(models, [], np.empty((len(models), 0, len(structures))))
    means = good.groupby(["model", "case", "structure"]).dice.mean()
    index = pd.MultiIndex.from_product([models, cases, structures])
    dice = means.reindex(index).to_numpy(dtype=float).reshape(len(models), len(cases), len(structures))
    return SharedCases(models, cases, np.where(np.isnan(dice).any(axis=0, keepdims=True), np.nan, dice))


def compare(shared: SharedCases, reference: str, distilled: Mapping[str, Distilled]) -> dict[str, Comparison]:
    """Differences, tests, rank shares and gaps; all without a value if no case is shared.

    Args:
        shared: of the models to compare.
        reference: the model that the others are tested against.
        distilled: by the name of each distilled student.
    """
    if not shared.cases:
        return dict.fromkeys(shared.models, Comparison())
    found = statistics.intervals(shared.dice)
    index = {name: i for i, name in enumerate(shared.models)}
    differences, p, p_holm = _tests(shared, found.mean, reference)
    ranks = statistics.rank_shares(found.resampled)
    return {
        name: Comparison(
            difference=differences.get(name, NAN),
            p=p.get(name, NAN),
            p_holm=p_holm.get(name, NAN),
            rank_shares=[] if np.isnan(ranks).any() else ranks[i].tolist(),
            gap=_gap(index, name, distilled[name], found) if name in distilled else None,
        )
        for name, i in index.items()
    }


def case_means(scores: pd.DataFrame, models: Sequence[str]) -> pd.DataFrame:
    """Mean Dice ``(models, cases)`` with names, for every case of any model; nan where a model has no Dice."""
    good = scores[scores.state.isin([SCORED, MISSED, FALSE_ALARM])]
    return good.pivot_table(index="model", columns="case", values="dice", aggfunc="mean").reindex(list(models))


def _means(scores: pd.DataFrame, column: str, structures: Sequence[str]) -> dict[str, float]:
    values = {name: scores[column][scores.structure == name].to_numpy(dtype=float) for name in structures}
    return {name: float(np.nanmean(of_one)) if not np.isnan(of_one).all() else NAN for name, of_one in values.items()}


def _mean(means: Mapping[str, float]) -> float:
    present = [value for value in means.values() if not np.isnan(value)]
    return float(np.mean(present)) if present else NAN


def _tests(
    shared: SharedCases, means: np.ndarray, reference: str
) -> tuple[dict[str, float], dict[str, float], dict[str, float]]:
    """By model: mean Dice minus the reference's, p, and corrected p; empty without a reference."""
    if reference not in shared.models:
        return {}, {}, {}
    per_case = statistics.per_case(shared.dice)
    base = shared.models.index(reference)
    others = {name: i for i, name in enumerate(shared.models) if name != reference}
    differences = {name: float(means[i] - means[base]) for name, i in others.items()}
    p = {name: statistics.signed_rank(per_case[i], per_case[base]) for name, i in others.items()}
    p_holm = dict(zip(others, map(float, statistics.holm(np.array(list(p.values())))), strict=True))
    return differences, p, p_holm


def _gap(index: Mapping[str, int], student: str, sides: Distilled, found: statistics.Intervals) -> Gap:
    if sides.teacher is None or sides.teacher not in index:
        return Gap(None, None, None, sides.no_teacher)
    if sides.alone is None or sides.alone not in index:
        return Gap(None, None, None, sides.no_alone)
    return statistics.gap_closed(index[sides.teacher], index[sides.alone], index[student], found)
