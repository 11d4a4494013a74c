"""One self-contained page: it needs no other file and no network, and everything can be read without its script."""

import datetime
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from nnunetv2_kd import __version__
from nnunetv2_kd.formatting import NOTHING
from nnunetv2_kd.leaderboard import plots, worst_cases
from nnunetv2_kd.leaderboard.board import Board, Entry
from nnunetv2_kd.leaderboard.columns import columns
from nnunetv2_kd.leaderboard.footnotes import definitions, remarks
from nnunetv2_kd.leaderboard.origin import provenance
from nnunetv2_kd.leaderboard.summary import summary

FILES = Path(__file__).parent / "page_files"


def to_page(boards: Sequence[Board]) -> str:
    """The page as HTML. All text from names and files is escaped."""
    environment = Environment(
        loader=FileSystemLoader(FILES), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("page.html.j2").render(
        boards=[_section(i, board) for i, board in enumerate(boards)],
        title=", ".join(board.dataset for board in boards),
        version=__version__,
        date=datetime.date.today().isoformat(),
    )


def _section(number: int, board: Board) -> dict[str, Any]:
    shown = [c for c in columns(board) if c.heading == "#" or any(c.text(e) != NOTHING for e in board.entries)]
    featured = worst_cases.featured_model(board)
    pictures, why_none = (
        worst_cases.worst_cases(board, featured) if featured is not None else ([], "No case was scored.")
    )
    return {
        "id": f"dataset{number}",
        "board": board,
        "summary": summary(board),
        "columns": shown,
        "rows": [{"entry": e, "cells": [(c.text(e), _key(c.key(e))) for c in shown]} for e in board.entries],
        "kinds": sorted({entry.kind for entry in board.entries}),
        "ranked": [_ranks(entry) for entry in board.ranked if entry.comparison.rank_shares],
        "by_params": plots.dice_against(board, lambda e: e.cost.params, "parameters", f"params{number}"),
        "by_ms": plots.dice_against(board, lambda e: e.cost.ms, "milliseconds per case", f"ms{number}"),
        "per_case": plots.per_case(board, f"cases{number}"),
        "featured": featured,
        "pictures": pictures,
        "why_none": why_none,
        "legend": worst_cases.legend(board),
        "provenance": [(entry, [*_seeds(entry), *provenance(entry.model)]) for entry in board.entries],
        "definitions": definitions(board),
        "remarks": remarks(board),
    }


def _seeds(entry: Entry) -> list[tuple[str, str]]:
    """The trainings behind a row that combines several."""
    if entry.seeds is None:
        return []
    of_each = zip(entry.seeds.names, entry.seeds.seeds, entry.seeds.dice, strict=True)
    return [(f"seed {seed}", f"{name}, mean Dice {dice:.3f}") for name, seed, dice in of_each]


def _key(value: float | str) -> str:
    """The value that the script sorts by; empty values go last."""
    return value if isinstance(value, str) else "" if math.isnan(value) else repr(float(value))


def _ranks(entry: Entry) -> dict[str, Any]:
    """A model's rank shares in whole percent, and how strongly to shade each."""
    shares = [
        {"percent": f"{100 * share:.0f}" if share >= 0.01 else ("<1" if share else ""), "shade": f"{share:.2f}"}
        for share in entry.comparison.rank_shares
    ]
    return {"entry": entry, "shares": shares}
