"""Columns of the leaderboard and the text of their cells, the same for every output."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from nnunetv2_kd.formatting import NOTHING, format_count
from nnunetv2_kd.leaderboard.board import SAW_VALIDATION_CASES, Board, Entry
from nnunetv2_kd.leaderboard.statistics import NOT_BETTER

DAGGER = "†"  # its teacher saw validation cases

SHORT = {
    "95 % interval": "95 % CI",
    "difference": "diff.",
    "p (Holm)": "p",
    "gap closed": "gap",
    "parameters": "params",
}
# shown if there is room; columns that are neither these nor MAIN are shown only with --wide
WHERE_ROOM = ("95 % interval", "kind", "difference")
MAIN = ("#", "model", "Dice", "p (Holm)", "gap closed", "parameters", "ms")


@dataclass(frozen=True)
class Column:
    """One column. `key` gives the value to sort by: a number (nan if there is none) or text."""

    heading: str
    text: Callable[[Entry], str]
    key: Callable[[Entry], float | str]
    description: str

    @property
    def short(self) -> str:
        """The heading for narrow tables."""
        return SHORT.get(self.heading, self.heading)

    @property
    def rank(self) -> str:
        """When it is shown: ``main`` always, ``room`` if there is room, ``more`` if all columns are asked for."""
        is_wanted = self.heading in WHERE_ROOM or self.heading.startswith("NSD ")
        return "main" if self.heading in MAIN else "room" if is_wanted else "more"

    @property
    def is_number(self) -> bool:
        return self.heading not in ("model", "kind", "folds", "empty")


def columns(board: Board) -> list[Column]:
    """All columns, in order."""

    def numeric(heading: str, value: Callable[[Entry], float | None], digits: int, description: str) -> Column:
        return Column(heading, lambda e: number(value(e), digits), lambda e: _or_nan(value(e)), description)

    return [
        Column("#", lambda e: NOTHING if e.rank is None else str(e.rank), lambda e: _or_nan(e.rank), "by mean Dice"),
        Column("model", shown_name, lambda e: e.short_name.lower(), "trainer · plans · configuration"),
        Column(
            "Dice",
            mean_dice,
            lambda e: _or_nan(e.scores.mean_dice),
            "mean over cases, then over structures, as in nnU-Net; for several seeds ± their standard deviation",
        ),
        Column(
            "95 % interval",
            lambda e: NOTHING if math.isnan(e.scores.low) else f"{e.scores.low:.3f}–{e.scores.high:.3f}",
            lambda e: e.scores.low,
            "of the mean Dice, bootstrap over cases",
        ),
        Column("kind", lambda e: e.kind, lambda e: e.kind, "from the record in its checkpoint"),
        Column(
            "difference",
            lambda e: "reference" if e.name == board.reference else signed(e.comparison.difference),
            lambda e: 0.0 if e.name == board.reference else e.comparison.difference,
            "mean Dice minus the reference's",
        ),
        Column(
            "p (Holm)",
            lambda e: p_value(e.comparison.p_holm),
            lambda e: e.comparison.p_holm,
            "signed-rank test against the reference",
        ),
        Column(
            "gap closed",
            gap_closed,
            lambda e: _or_nan(e.comparison.gap.share if e.comparison.gap else None),
            "(distilled − alone) / (teacher − alone) of the mean Dice, with 95 % interval",
        ),
        Column(
            "parameters",
            lambda e: NOTHING if e.cost.params is None else format_count(e.cost.params),
            lambda e: _or_nan(e.cost.params),
            "of the network that its plans describe",
        ),
        numeric("GFLOPs", lambda e: e.cost.gflops, 2, "one forward pass of one patch, a multiply-add counted as two"),
        numeric("ms", lambda e: e.cost.ms, 0, "median per case, image to segmentation (--time)"),
        numeric("MiB peak", lambda e: e.cost.peak_mib, 0, "peak memory while predicting (--time)"),
        numeric("MiB file", lambda e: e.cost.file_mib, 1, "checkpoint_final.pth, with the optimizer's state"),
        numeric(
            f"NSD {board.evaluation.tolerance:g} mm",
            lambda e: e.scores.nsd,
            3,
            "normalised surface Dice at this tolerance",
        ),
        numeric("HD95 mm", lambda e: e.scores.hd95_mm, 2, "95 % Hausdorff distance, without missed structures"),
        Column(
            "empty",
            lambda e: describe_empties(e.scores.counts),
            lambda e: float(sum(e.scores.counts.values())),
            "how many structures of cases are missed, false alarms, empty in both, or failed",
        ),
        *(
            numeric(f"Dice {name}", lambda e, name=name: e.scores.dice[name], 3, "mean over cases, as in nnU-Net")  # type: ignore[misc]
            for name in board.evaluation.structures
        ),
        Column("folds", fold_names, fold_names, "folds that were validated"),
        Column(
            "cases", lambda e: str(e.scores.cases), lambda e: float(e.scores.cases), "cases that the means are over"
        ),
    ]


def shown_name(entry: Entry) -> str:
    return f"{entry.short_name} {DAGGER}" if has_dagger(entry) else entry.short_name


def mean_dice(entry: Entry) -> str:
    sd = "" if entry.seeds is None or math.isnan(entry.seeds.sd) else f" ± {entry.seeds.sd:.3f}"
    return number(entry.scores.mean_dice, 3) + sd


def has_dagger(entry: Entry) -> bool:
    return any(SAW_VALIDATION_CASES in warning for warning in entry.warnings)


def fold_names(entry: Entry) -> str:
    return ", ".join(fold.name for fold in entry.folds) or "none"


def number(value: float | None, digits: int) -> str:
    return NOTHING if value is None or math.isnan(value) else f"{value:.{digits}f}"


def signed(value: float) -> str:
    return NOTHING if math.isnan(value) else f"{value:+.3f}".replace("-", "−")


def p_value(value: float) -> str:
    return NOTHING if math.isnan(value) else "<0.001" if value < 0.001 else f"{value:.3f}"


def describe_empties(counts: dict[str, int]) -> str:
    """Structures left out of the means, or scored 0, because they are empty: ``2 missed, 1 both empty``."""
    parts = [f"{count} {name.replace('_', ' ')}" for name, count in counts.items() if count]
    return ", ".join(parts) or "0"


def gap_closed(entry: Entry) -> str:
    gap = entry.comparison.gap
    if gap is None or (gap.share is None and gap.reason != NOT_BETTER):
        return NOTHING
    if gap.share is None:
        return "not defined"
    interval = "" if gap.low is None or gap.high is None else f" ({100 * gap.low:.0f} to {100 * gap.high:.0f})"
    return f"{100 * gap.share:.0f} %{interval}".replace("-", "−")


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else float(value)
