"""Which model to use, and whether the difference is real, in a few sentences."""

import math

from nnunetv2_kd.formatting import format_count
from nnunetv2_kd.leaderboard.board import Board, Entry
from nnunetv2_kd.leaderboard.origin import TEACHER

SIGNIFICANT = 0.05


def summary(board: Board) -> list[str]:
    """One line each."""
    if not board.ranked:
        return ["No model has a score yet."]
    best = board.ranked[0]
    agreement = board.evaluation.agreement
    lines = [f"Every Dice here is {agreement}."] if agreement else []
    lines += [f"Highest mean Dice: {_with_dice(best)}." + _how_often_first(best)]
    students = [entry for entry in board.ranked if entry.kind != TEACHER]
    if students and students[0] is not best:
        lines.append(f"Best model that is not a teacher: {_with_dice(students[0])}{_size_against(students[0], best)}.")
    # one per size: a model in several runtimes has several entries
    front = list({entry.cost.params: entry for entry in reversed(board.pareto_front(lambda e: e.cost.params))}.values())
    front.reverse()
    if len(front) > 1:
        sizes = [f"{e.short_name} ({format_count(e.cost.params or 0)}, {e.scores.mean_dice:.3f})" for e in front]
        lines.append(f"For fewer parameters, the best Dice at each size: {', '.join(sizes)}.")
    return [*lines, *_against_reference(board)]


def _against_reference(board: Board) -> list[str]:
    tested = [entry for entry in board.ranked if not math.isnan(entry.comparison.p_holm)]
    if not tested:
        return []
    reference = next(entry.short_name for entry in board.entries if entry.name == board.reference)
    significant = [entry for entry in tested if entry.comparison.p_holm < SIGNIFICANT]
    better = sum(entry.comparison.difference > 0 for entry in significant)
    undecided = len(tested) - len(significant)
    return [
        f"Against {reference}, {better} of {len(tested)} models are better and {len(significant) - better} worse with "
        f"p < {SIGNIFICANT} after correction" + (f"; for {undecided} the cases do not decide." if undecided else ".")
    ]


def _with_dice(entry: Entry) -> str:
    scores = entry.scores
    interval = "" if math.isnan(scores.low) else f" ({scores.low:.3f} to {scores.high:.3f})"
    return f"{entry.short_name}, {scores.mean_dice:.3f}{interval}"


def _how_often_first(entry: Entry) -> str:
    shares = entry.comparison.rank_shares
    return f" It is first in {100 * shares[0]:.0f} % of the resamples." if len(shares) > 1 else ""


def _size_against(entry: Entry, other: Entry) -> str:
    if not entry.cost.params or not other.cost.params:
        return ""
    return f", with {100 * entry.cost.params / other.cost.params:.0f} % of the parameters"
