"""The same table for the terminal (text), papers (LaTeX, Markdown) and programs (CSV, JSON)."""

import csv
import io
import json
import math
from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from nnunetv2_kd import __version__
from nnunetv2_kd.formatting import NOTHING, csv_cell, markdown_escaped, markdown_line
from nnunetv2_kd.leaderboard.board import Board, Entry
from nnunetv2_kd.leaderboard.columns import Column, columns
from nnunetv2_kd.leaderboard.footnotes import footnotes
from nnunetv2_kd.leaderboard.origin import provenance
from nnunetv2_kd.leaderboard.scores import FAILED, SCORE_COLUMNS
from nnunetv2_kd.leaderboard.seeds import Seeds
from nnunetv2_kd.leaderboard.summary import summary

DROPPED_FIRST = (
    "folds",
    "MiB file",
    "MiB peak",
    "GFLOPs",
    "cases",
    "kind",
    "empty",
    "HD95 mm",
    "difference",
    "#",
    "95 % interval",
    "NSD",
    "ms",
    "parameters",
    "gap closed",
)
NAME_WIDTH = 26  # characters of a model's name in a narrow terminal
LEFT_OUT_OF_PAPERS = ("#", "kind", "folds", "cases", "empty", "MiB file", "MiB peak", "difference")


def print_board(board: Board, console: Console, wide: bool = False) -> None:
    """Print the summary, the columns that fit the terminal's width, and the footnotes.

    Args:
        wide: print all columns, on lines as long as needed.
    """
    filled = [c for c in columns(board) if any(c.text(entry) != NOTHING for entry in board.entries)]
    in_order = sorted(filled, key=lambda column: not _comes_first(column))
    kept = in_order if wide else _fitting_columns(in_order, board, console.width)
    table = Table(title=Text(board.dataset), box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    for column in kept:
        justify: Any = "right" if column.is_number else "left"
        table.add_column(Text(column.short), justify=justify, no_wrap=wide or column.is_number, overflow="fold")
    for entry in board.entries:
        table.add_row(*(Text(column.text(entry)) for column in kept))
    # a console breaks text that is longer than its own lines
    (Console(file=console.file, width=_width(kept, board)) if wide else console).print(table)
    left_out = [column.short for column in in_order if column not in kept]
    if left_out:
        console.print(Text(f"--wide also shows {', '.join(left_out)}.", style="dim"))
    for line in summary(board):
        _print_line(console, line)
    for line in footnotes(board):
        _print_line(console, line, "dim")
    for line in board.problems:
        _print_line(console, f"Missing: {line}", "yellow")


def _print_line(console: Console, line: str, style: str = "") -> None:
    """Print a line: in a terminal broken between words, unless it contains a command to copy; in a file or
    pipe as is."""
    console.print(Text(line, style=style), soft_wrap=not console.is_terminal or "nnUNetv2_" in line)


def _comes_first(column: Column) -> bool:
    return column.heading in ("model", "Dice")


def _fitting_columns(kept: list[Column], board: Board, width: int) -> list[Column]:
    """Drop the least important columns until the rest fits on a line; if that is not enough, names are broken."""
    for heading in (*(f"Dice {name}" for name in board.evaluation.structures), *DROPPED_FIRST):
        if _width(kept, board, NAME_WIDTH) <= width:
            break
        kept = [c for c in kept if not (c.heading == heading or (heading == "NSD" and c.heading.startswith("NSD ")))]
    return kept


def _width(kept: Sequence[Column], board: Board, of_name: int | None = None) -> int:
    """Width of a table with these columns, with a space on both sides of each and one character between.

    Args:
        of_name: width at which names are broken between words; None: as wide as they need.
    """
    widths = {c.heading: max(len(text) for text in (c.short, *map(c.text, board.entries))) for c in kept}
    if of_name is not None and "model" in widths:
        widths["model"] = min(widths["model"], of_name)
    return sum(widths.values()) + 3 * len(kept) + 1


def to_csv(boards: Sequence[Board]) -> str:
    """One line per dataset, model, fold, case and structure; nan is written as an empty value."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["dataset", *SCORE_COLUMNS])
    for board in boards:
        for row in board.every_score[list(SCORE_COLUMNS)].itertuples(index=False):
            values = ("" if isinstance(v, float) and math.isnan(v) else v for v in row)
            writer.writerow([csv_cell(board.dataset), *map(csv_cell, values)])
    return file.getvalue()


def to_json(boards: Sequence[Board]) -> str:
    """Everything, including every case; nan is written as null."""
    return json.dumps(
        {"nnunetv2_kd": __version__, "datasets": [_as_dict(board) for board in boards]}, indent=1, allow_nan=False
    )


def to_markdown(boards: Sequence[Board]) -> str:
    """A table per dataset."""
    parts = []
    for board in boards:
        kept = columns(board)
        lines = [f"## {markdown_escaped(board.dataset)}", "", *(markdown_escaped(line) for line in summary(board)), ""]
        lines.append(markdown_line([markdown_escaped(column.heading) for column in kept]))
        lines.append(markdown_line(["---:" if column.is_number else "---" for column in kept]))
        lines += [markdown_line([markdown_escaped(column.text(entry)) for column in kept]) for entry in board.entries]
        lines += ["", *(f"* {markdown_escaped(line)}" for line in footnotes(board))]
        lines += [f"* Missing: {markdown_escaped(line)}" for line in board.problems]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def to_latex(boards: Sequence[Board]) -> str:
    """A ``table*`` per dataset, using ``\\usepackage{booktabs}``, with the columns that papers print."""
    parts = []
    for board in boards:
        kept = [column for column in columns(board) if column.heading not in LEFT_OUT_OF_PAPERS]
        kept = [column for column in kept if any(column.text(entry) != NOTHING for entry in board.entries)]
        alignment = "".join("r" if column.is_number else "l" for column in kept)
        lines = [
            "\\begin{table*}",
            "\\centering",
            f"\\caption{{{_latex(board.dataset)}: {_latex(board.evaluation.source)}.}}",
            f"\\begin{{tabular}}{{{alignment}}}",
            "\\toprule",
            _latex_row([column.heading for column in kept]),
            "\\midrule",
        ]
        lines += [_latex_row([column.text(entry) for column in kept]) for entry in board.entries]
        lines += ["\\bottomrule", "\\end{tabular}", "\\end{table*}", *(f"% {line}" for line in footnotes(board))]
        lines += [f"% Missing: {line}" for line in board.problems]
        parts.append("\n".join(line.replace("\n", " ") for line in lines))
    return "\n\n".join(parts) + "\n"


def _as_dict(board: Board) -> dict[str, Any]:
    rows = [
        {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in row.items()}
        for row in board.every_score.to_dict("records")
    ]
    return {
        "dataset": board.dataset,
        "source": board.evaluation.source,
        "reference": board.reference or None,
        "tolerance_mm": board.evaluation.tolerance,
        "structures": board.evaluation.structures,
        "verdict": summary(board),
        "shared_cases": board.shared,
        "models": [_entry_as_dict(entry) for entry in board.entries],
        "notes": footnotes(board),
        "problems": board.problems,
        "failed": sum(row["state"] == FAILED for row in rows),
        "cases": rows,
    }


def _entry_as_dict(entry: Entry) -> dict[str, Any]:
    def plain(value: float | None) -> float | None:
        return None if value is None or math.isnan(value) else value

    scores, comparison, cost = entry.scores, entry.comparison, entry.cost
    return {
        "model": entry.name,
        "label": entry.short_name,
        "kind": entry.kind,
        "teacher": entry.teacher,
        "alone": entry.alone,
        "rank": entry.rank,
        "folds": [fold.name for fold in entry.model.folds if not fold.problem],
        "cases": scores.cases,
        "mean_dice": plain(scores.mean_dice),
        "seeds": None if entry.seeds is None else _seeds_as_dict(entry.seeds),
        "mean_dice_95": [plain(scores.low), plain(scores.high)],
        "dice": {name: plain(value) for name, value in scores.dice.items()},
        "nsd": plain(scores.nsd),
        "hd95_mm": plain(scores.hd95_mm),
        "values_in_nsd_and_hd95": list(scores.measured),
        "counts": scores.counts,
        "params": cost.params,
        "gflops_per_patch": plain(cost.gflops),
        "file_mib": plain(cost.file_mib),
        "ms_per_case": plain(cost.ms),
        "peak_mib": plain(cost.peak_mib),
        "difference_to_reference": plain(comparison.difference),
        "p": plain(comparison.p),
        "p_holm": plain(comparison.p_holm),
        "gap_closed": None if comparison.gap is None else vars(comparison.gap),
        "rank_shares": comparison.rank_shares,
        "marks": entry.warnings,
        "made": dict(provenance(entry.model)),
    }


def _seeds_as_dict(seeds: Seeds) -> dict[str, Any]:
    of_each = [
        {"model": name, "seed": seed, "mean_dice": None if math.isnan(dice) else dice}
        for name, seed, dice in zip(seeds.names, seeds.seeds, seeds.dice, strict=True)
    ]
    return {"sd_of_mean_dice": None if math.isnan(seeds.sd) else seeds.sd, "trainings": of_each}


def _latex(text: str) -> str:
    special = {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "−": "$-$",
        "–": "--",
        "†": r"\dag{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "\n": " ",
    }
    return "".join(special.get(c, f"\\{c}" if c in "&%$#_{}" else c) for c in text)


def _latex_row(values: Sequence[str]) -> str:
    return " & ".join(_latex(value) for value in values) + r" \\"
