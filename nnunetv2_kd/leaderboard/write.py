"""Write all files of the leaderboard."""

from collections.abc import Sequence
from pathlib import Path

from nnunetv2_kd.leaderboard.board import Board
from nnunetv2_kd.leaderboard.page import to_page
from nnunetv2_kd.leaderboard.tables import to_csv, to_json, to_latex, to_markdown
from nnunetv2_kd.nnunet.files import write_text

WRITERS = {
    "leaderboard.csv": to_csv,
    "leaderboard.json": to_json,
    "leaderboard.md": to_markdown,
    "leaderboard.tex": to_latex,
    "index.html": to_page,
}


def write_all(boards: Sequence[Board], output: Path) -> list[Path]:
    """Write all outputs into a folder, each file atomically.

    Returns:
        The files.

    Raises:
        KDError: if one cannot be written; the earlier files are unchanged then.
    """
    output.mkdir(parents=True, exist_ok=True)
    texts = {name: write(boards) for name, write in WRITERS.items()}
    for name, text in texts.items():
        write_text(output / name, text)
    return [output / name for name in texts]
