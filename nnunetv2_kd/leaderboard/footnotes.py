"""What a board's numbers mean, and what a reader must know about individual models."""

from collections.abc import Sequence

from nnunetv2_kd.leaderboard.board import Board
from nnunetv2_kd.leaderboard.columns import DAGGER, has_dagger


def footnotes(board: Board) -> list[str]:
    """Definitions and remarks, one line each."""
    return [*definitions(board), *remarks(board)]


def definitions(board: Board) -> list[str]:
    """How the numbers are computed."""
    timing = board.evaluation.timing
    return [
        "Dice is nnU-Net's: per structure the mean over cases, then the mean over structures (foreground_mean).",
        f"NSD: normalised surface Dice at a tolerance of {board.evaluation.tolerance:g} mm. HD95: 95 % Hausdorff "
        "distance in mm. For images without a spacing (PNG and the like) both are in pixels.",
        "If a structure is empty in both ground truth and prediction ('both empty'), its scores are undefined and left "
        "out of the means. If it is empty in only one of them ('missed', 'false alarm'), Dice and NSD are 0, and the "
        "undefined HD95 is left out of the mean. Compare HD95 between models only along with these counts.",
        "Intervals: 95 % percentile bootstrap over cases (2000 resamples, seed 0). They show how much the choice of "
        "cases matters, not how much a second training would differ.",
        "p: Wilcoxon signed-rank test on the mean Dice per case against the reference, two-sided, corrected for the "
        "number of models (Holm).",
        "Gap closed: (distilled − alone) / (teacher − alone) of the mean Dice; alone is the same student, plans and "
        "configuration without a teacher. Undefined if the teacher is not better than the student alone.",
        *([timing] if timing else []),
    ]


def remarks(board: Board) -> list[str]:
    """How the models were compared here, and the models' warnings, each with all models that it applies to."""
    lines = [f"Numbers: {board.evaluation.source}.", *board.notes]
    if any(has_dagger(entry) for entry in board.entries):
        lines.append(f"{DAGGER}: its teacher was trained on validation cases, or may have been.")
    models: dict[str, list[str]] = {}
    for entry in board.entries:
        gap = entry.comparison.gap
        reasons = [f"gap closed: {gap.reason}"] if gap is not None and gap.reason else []
        for warning in [*reasons, *entry.warnings]:
            models.setdefault(warning, []).append(entry.short_name)
    return lines + [f"{_few(names)}: {warning}." for warning, names in models.items()]


def _few(names: Sequence[str]) -> str:
    if len(names) <= 4:
        return ", ".join(names)
    return f"{', '.join(names[:3])} and {len(names) - 3} more"
