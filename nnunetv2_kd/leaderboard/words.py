"""The board in words: columns, cells, footnotes and the verdict, for every kind of output alike."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from nnunetv2_kd.formatting import NOTHING, format_count
from nnunetv2_kd.leaderboard.board import Board, Entry
from nnunetv2_kd.leaderboard.origin import TEACHER
from nnunetv2_kd.leaderboard.statistics import pareto

SAW = "†"
SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Column:
    """One column. `key` sorts it: a number, nan where there is none, or text."""

    heading: str
    text: Callable[[Entry], str]
    key: Callable[[Entry], float | str]
    explained: str

    @property
    def is_number(self) -> bool:
        return self.heading not in ("model", "kind", "folds", "empty")


def columns(board: Board) -> list[Column]:
    """All columns, in order."""

    def numeric(heading: str, value: Callable[[Entry], float | None], digits: int, explained: str) -> Column:
        return Column(heading, lambda e: number(value(e), digits), lambda e: _plain(value(e)), explained)

    return [
        Column("#", lambda e: NOTHING if e.rank is None else str(e.rank), lambda e: _plain(e.rank), "by mean Dice"),
        Column("model", shown_name, lambda e: e.label.lower(), "trainer · plans · configuration"),
        numeric("Dice", lambda e: e.mean_dice, 3, "mean over cases, then over structures, as nnU-Net"),
        Column(
            "95 % interval",
            lambda e: NOTHING if math.isnan(e.low) else f"{e.low:.3f}–{e.high:.3f}",
            lambda e: e.low,
            "of the mean Dice, bootstrap over cases",
        ),
        Column("kind", lambda e: e.kind, lambda e: e.kind, "told by the record in its checkpoint"),
        Column(
            "difference",
            lambda e: "reference" if e.name == board.reference else signed(e.difference),
            lambda e: 0.0 if e.name == board.reference else e.difference,
            "of the mean Dice to the reference",
        ),
        Column("p (Holm)", lambda e: p_value(e.p_holm), lambda e: e.p_holm, "signed-rank test against the reference"),
        Column(
            "gap closed",
            gap_closed,
            lambda e: _plain(e.gap.share if e.gap else None),
            "(distilled − alone) / (teacher − alone) of the mean Dice, with 95 % interval",
        ),
        Column(
            "parameters",
            lambda e: NOTHING if e.cost.params is None else format_count(e.cost.params),
            lambda e: _plain(e.cost.params),
            "of the network that its plans describe",
        ),
        numeric("GFLOPs", lambda e: e.cost.gflops, 2, "one forward pass of one patch, a multiply-add counted as two"),
        numeric("ms", lambda e: e.cost.ms, 0, "median per case, image to segmentation (--time)"),
        numeric("MiB peak", lambda e: e.cost.peak_mib, 0, "peak memory while predicting (--time)"),
        numeric("MiB file", lambda e: e.cost.file_mib, 1, "checkpoint_final.pth, with the optimizer's state"),
        numeric(f"NSD {board.tolerance:g} mm", lambda e: e.nsd, 3, "normalised surface Dice at this tolerance"),
        numeric("HD95 mm", lambda e: e.hd95_mm, 2, "95 % Hausdorff distance; missed structures are not in it"),
        Column(
            "empty",
            lambda e: empties(e.counts),
            lambda e: float(sum(e.counts.values())),
            "structures of cases that are missed, false alarms, empty in both, or failed",
        ),
        *(
            numeric(f"Dice {name}", lambda e, name=name: e.dice[name], 3, "mean over cases, as nnU-Net")  # type: ignore[misc]
            for name in board.structures
        ),
        Column("folds", lambda e: e.folds, lambda e: e.folds, "folds that were validated"),
        Column("cases", lambda e: str(e.cases), lambda e: float(e.cases), "cases that its means stand on"),
    ]


def shown_name(entry: Entry) -> str:
    return entry.label + (f" {SAW}" if any("teacher saw" in mark for mark in entry.marks) else "")


def number(value: float | None, digits: int) -> str:
    return NOTHING if value is None or math.isnan(value) else f"{value:.{digits}f}"


def signed(value: float) -> str:
    return NOTHING if math.isnan(value) else f"{value:+.3f}".replace("-", "−")


def p_value(value: float) -> str:
    return NOTHING if math.isnan(value) else "<0.001" if value < 0.001 else f"{value:.3f}"


def empties(counts: dict[str, int]) -> str:
    """What is in no mean, or was scored 0 because of it: ``2 missed, 1 both empty``."""
    told = [f"{count} {name.replace('_', ' ')}" for name, count in counts.items() if count]
    return ", ".join(told) or "0"


def gap_closed(entry: Entry) -> str:
    gap = entry.gap
    if gap is None:
        return NOTHING
    if gap.share is None:
        return "not defined"
    interval = "" if gap.low is None or gap.high is None else f" ({100 * gap.low:.0f} to {100 * gap.high:.0f})"
    return f"{100 * gap.share:.0f} %{interval}".replace("-", "−")


def on_front(board: Board, cost: Callable[[Entry], float | None]) -> list[Entry]:
    """The models that no other beats in both Dice and this cost, cheapest first."""
    entries = board.compared
    costs = np.array([_plain(cost(entry)) for entry in entries], dtype=float)
    front = pareto(costs, np.array([entry.mean_dice for entry in entries], dtype=float))
    return [entries[i] for i in np.argsort(costs, kind="stable") if front[i]]


def verdict(board: Board) -> list[str]:
    """Which model to use, and whether the difference is real, in a few sentences."""
    if not board.compared:
        return ["No model has a score yet."]
    best = board.compared[0]
    lines = [f"Highest mean Dice: {_with_dice(best)}." + _how_often_first(best)]
    students = [entry for entry in board.compared if entry.kind != TEACHER]
    if students and students[0] is not best:
        lines.append(f"Best that is no teacher: {_with_dice(students[0])}{_size_against(students[0], best)}.")
    front = on_front(board, lambda e: e.cost.params)
    if len(front) > 1:
        told = ", ".join(f"{e.label} ({format_count(e.cost.params or 0)}, {e.mean_dice:.3f})" for e in front)
        lines.append(f"For fewer parameters, the best Dice at each size: {told}.")
    tested = [entry for entry in board.compared if not math.isnan(entry.p_holm)]
    if tested:
        label = next(entry.label for entry in board.entries if entry.name == board.reference)
        sure = [entry for entry in tested if entry.p_holm < SIGNIFICANT]
        better = sum(entry.difference > 0 for entry in sure)
        lines.append(
            f"Against {label}, {better} of {len(tested)} models are better and {len(sure) - better} worse with "
            f"p < {SIGNIFICANT} after correction"
            + (f"; for {len(tested) - len(sure)} the cases do not tell." if len(sure) < len(tested) else ".")
        )
    return lines


def footnotes(board: Board) -> list[str]:
    """What the numbers are, and what must be known of single models."""
    return [*conventions(board), *remarks(board)]


def conventions(board: Board) -> list[str]:
    """How the numbers are made."""
    return [*board.conventions, *([board.timed] if board.timed else [])]


def remarks(board: Board) -> list[str]:
    """How the models were compared here, and what must be known of single ones."""
    lines = [f"Numbers: {board.source}.", *board.notes]
    if any(SAW in shown_name(entry) for entry in board.entries):
        lines.append(f"{SAW}: its teacher was trained on validation cases, or it is not known that it was not.")
    told: dict[str, list[str]] = {}
    for entry in board.entries:
        if entry.gap is not None and entry.gap.reason:
            told.setdefault(f"gap closed: {entry.gap.reason}", []).append(entry.label)
        for mark in entry.marks:
            told.setdefault(mark, []).append(entry.label)
    return lines + [f"{_few(labels)}: {what}." for what, labels in told.items()]


def _few(labels: Sequence[str]) -> str:
    if len(labels) <= 4:
        return ", ".join(labels)
    return f"{', '.join(labels[:3])} and {len(labels) - 3} more"


def _with_dice(entry: Entry) -> str:
    interval = "" if math.isnan(entry.low) else f" ({entry.low:.3f} to {entry.high:.3f})"
    return f"{entry.label}, {entry.mean_dice:.3f}{interval}"


def _how_often_first(entry: Entry) -> str:
    return f" It is first in {100 * entry.rank_shares[0]:.0f} % of the resamples." if entry.rank_shares else ""


def _size_against(entry: Entry, other: Entry) -> str:
    if not entry.cost.params or not other.cost.params:
        return ""
    return f", with {100 * entry.cost.params / other.cost.params:.0f} % of the parameters"


def _plain(value: float | None) -> float:
    return float("nan") if value is None else float(value)
