"""Statistics on Dice per case and structure. Works on arrays, not on models or files.

Bootstrap and signed-rank test are SciPy's. Cases are resampled, and all models use the same resamples, so that
differences are paired. The intervals show how much the choice of *cases* matters. They do not show how much a second
training of the same model would differ.
"""

from dataclasses import dataclass

import numpy as np
from scipy.stats import bootstrap, rankdata, wilcoxon

LEVEL = 0.95
RESAMPLES = 2000
NOT_BETTER = "the teacher is not better than the student alone"


@dataclass(frozen=True)
class Intervals:
    """Mean Dice of M models with bootstrap intervals.

    Attributes:
        mean, low, high: ``(M,)``; low and high are nan if there are fewer than two cases.
        resampled: ``(M, B)``, the means in each of the B resamples; B is 0 if there are fewer than two cases.
    """

    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    resampled: np.ndarray


@dataclass(frozen=True)
class Gap:
    """The share of the gap between the student alone and the teacher that distillation closed: 0 none, 1 all of it.
    `reason` says why `share`, or `low` and `high`, are None."""

    share: float | None
    low: float | None
    high: float | None
    reason: str = ""


def foreground_mean(dice: np.ndarray, axis: int = -2) -> np.ndarray:
    """nnU-Net's ``foreground_mean``: the mean over structures of the mean over cases, ignoring nan.

    Args:
        dice: ``(..., cases, structures)`` in [0, 1]; nan if truth and prediction are both empty.
        axis: of the cases.

    Returns:
        The mean. Structures that are nan in every case are left out, whereas nnU-Net's own mean is then nan.

    >>> float(foreground_mean(np.array([[0.8, np.nan], [0.6, 0.9]]), axis=0))  # two cases, two structures
    0.8
    """
    per_structure = _nanmean(dice, axis)
    return _nanmean(per_structure, -1)


def intervals(dice: np.ndarray, seed: int = 0, resamples: int = RESAMPLES) -> Intervals:
    """Mean Dice of each model and its percentile bootstrap interval over cases.

    Args:
        dice: ``(M, C, S)``: models, the cases that all share, structures; in [0, 1] or nan.
        seed: of the resampling.
        resamples: how many.
    """
    mean = foreground_mean(dice)
    if dice.shape[1] < 2:
        nothing = np.full(len(dice), np.nan)
        return Intervals(mean, nothing, nothing, np.empty((len(dice), 0)))

    def statistic(cases: np.ndarray, axis: int = -1) -> np.ndarray:  # (batch, C) to (M, batch)
        return foreground_mean(dice[:, cases])

    result = bootstrap(
        (np.arange(dice.shape[1]),),
        statistic,
        vectorized=True,
        n_resamples=resamples,
        confidence_level=LEVEL,
        method="percentile",
        rng=np.random.default_rng(seed),
        batch=200,
    )
    interval = result.confidence_interval
    return Intervals(mean, np.asarray(interval.low), np.asarray(interval.high), result.bootstrap_distribution)


def per_case(dice: np.ndarray) -> np.ndarray:
    """``(..., C, S)`` to ``(..., C)``: the mean over the structures of each case, ignoring nan."""
    return _nanmean(dice, -1)


def signed_rank(model: np.ndarray, reference: np.ndarray) -> float:
    """Two-sided p of Wilcoxon's signed-rank test on the mean Dice per case.

    Args:
        model, reference: ``(C,)``, the same cases in the same order; nan pairs are left out.

    Returns:
        p in (0, 1]; 1 if no case differs; nan with fewer than two cases.
    """
    difference = model - reference
    difference = difference[~np.isnan(difference)]
    if len(difference) < 2:
        return float("nan")
    if not difference.any():
        return 1.0
    return float(wilcoxon(difference).pvalue)


def holm(p: np.ndarray) -> np.ndarray:
    """Holm's step-down correction (Scandinavian Journal of Statistics 6, 1979).

    Args:
        p: ``(K,)``; nan (no test) stays nan and is not counted.

    >>> holm(np.array([0.01, 0.04, np.nan])).round(2)
    array([0.02, 0.04,  nan])
    """
    corrected = np.full(len(p), np.nan)
    order = [i for i in np.argsort(p) if not np.isnan(p[i])]
    running = 0.0
    for step, i in enumerate(order):
        running = max(running, (len(order) - step) * p[i])
        corrected[i] = min(running, 1.0)
    return corrected


def rank_shares(resampled: np.ndarray) -> np.ndarray:
    """How often each model has each rank (Wiesenfarth et al., Scientific Reports 11, 2021).

    Args:
        resampled: ``(M, B)`` means.

    Returns:
        ``(M, M)``: for each model (row), the share of resamples in which it has each rank (column, best first). Models
        that tie share the better rank. nan without resamples.
    """
    if resampled.shape[1] == 0:
        return np.full((len(resampled), len(resampled)), np.nan)
    ranks = rankdata(-resampled, axis=0, method="min")
    return np.stack([(ranks == rank).mean(axis=1) for rank in range(1, len(resampled) + 1)], axis=1)


def gap_closed(teacher: int, alone: int, distilled: int, found: Intervals) -> Gap:
    """``(distilled - alone) / (teacher - alone)`` of the mean Dice, with its bootstrap interval.

    Args:
        teacher, alone, distilled: indices of the models in `found`.
        found: from `intervals`, on shared cases.
    """
    whole = found.mean[teacher] - found.mean[alone]
    if not whole > 0:
        return Gap(None, None, None, NOT_BETTER)
    share = float((found.mean[distilled] - found.mean[alone]) / whole)
    wholes = found.resampled[teacher] - found.resampled[alone]
    if wholes.size == 0:
        return Gap(share, None, None, "fewer than two cases")
    tail = (1 - LEVEL) / 2
    if (wholes <= 0).mean() >= tail:
        # a ratio whose denominator may be 0 has no bounded interval (Fieller)
        return Gap(share, None, None, "no interval: the teacher may not be better than the student alone")
    shares = (found.resampled[distilled] - found.resampled[alone])[wholes > 0] / wholes[wholes > 0]
    low, high = np.quantile(shares, [tail, 1 - tail])
    return Gap(share, float(low), float(high))


def pareto(costs: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Which models are on the Pareto front: no other model is at least as cheap and as good, and strictly better in
    one.

    Args:
        costs, values: ``(M,)``; models with nan in either are never on the front.

    >>> pareto(np.array([1.0, 2.0, 3.0]), np.array([0.7, 0.9, 0.8]))
    array([ True,  True, False])
    """
    front = []
    for cost, value in zip(costs, values, strict=True):
        beaten = ((costs <= cost) & (values >= value) & ((costs < cost) | (values > value))).any()
        front.append(not (np.isnan(cost) or np.isnan(value) or beaten))
    return np.array(front, dtype=bool)


def _nanmean(values: np.ndarray, axis: int) -> np.ndarray:
    """np.nanmean, without a warning if all values are nan."""
    with np.errstate(invalid="ignore", divide="ignore"):
        counts = (~np.isnan(values)).sum(axis=axis)
        return np.asarray(np.nansum(values, axis=axis) / counts)
