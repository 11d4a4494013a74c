"""All files of the leaderboard."""

from collections.abc import Sequence
from pathlib import Path

from nnunetv2_kd.leaderboard.board import Board
from nnunetv2_kd.leaderboard.page import to_page
from nnunetv2_kd.leaderboard.tables import to_csv, to_json, to_latex, to_markdown

WRITERS = {
    "leaderboard.csv": to_csv,
    "leaderboard.json": to_json,
    "leaderboard.md": to_markdown,
    "leaderboard.tex": to_latex,
    "index.html": to_page,
}


def write_all(boards: Sequence[Board], output: Path) -> list[Path]:
    """Write every kind of output into a folder.

    Returns:
        The files.
    """
    output.mkdir(parents=True, exist_ok=True)
    files = []
    for name, write in WRITERS.items():
        (output / name).write_text(write(boards), encoding="utf-8")
        files.append(output / name)
    return files
