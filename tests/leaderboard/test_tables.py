import csv
import io
import json

import pytest
import torch
from rich.console import Console

from nnunetv2_kd.formatting import csv_cell
from nnunetv2_kd.leaderboard.board import make_boards
from nnunetv2_kd.leaderboard.request import LeaderboardRequest
from nnunetv2_kd.leaderboard.tables import print_board, to_csv, to_json, to_latex, to_markdown
from nnunetv2_kd.leaderboard.write import write_all
from tests.scored_models import eroded, record, shifted
from tests.small_networks import DATASET_JSON

STRANGE = "my plans & 50% <b>_x_|y $z$ [red]"


@pytest.fixture
def boards(family):
    kd = record("nnUNetTrainerKDBaseline", note="<script>alert(1)</script>")
    family.add("nnUNetTrainerKDBaseline", eroded(3), plans_name=STRANGE, kd=kd)
    return make_boards(LeaderboardRequest(["7"], torch.device("cpu")), lambda line: None)


def printed(board, width, wide=False):
    stream = io.StringIO()
    print_board(board, Console(file=stream, width=width), wide)
    return stream.getvalue()


def table_of(text):
    """The lines of the table: what comes before the first sentence."""
    return text[: text.index("Highest mean Dice")].splitlines()


def test_terminal(boards):
    wide = printed(boards[0], 260)
    for words in ("95 % CI", "reference", "Dice a", "gap", "student distilled", STRANGE, "KD · Small †"):
        assert words in wide
    assert "ms" not in table_of(wide)[2].split()  # not timed
    assert "--wide" not in wide  # nothing is left out
    assert table_of(printed(boards[0], 80, wide=True))[2:] == table_of(wide)[2:]


@pytest.mark.parametrize("width", [60, 80, 120])
def test_narrow_terminals(boards, width):
    """Model and Dice come first; every number is complete and on one line."""
    text = printed(boards[0], width)
    lines = table_of(text)
    assert max(len(line) for line in lines) <= width
    assert lines[2].split()[:2] == ["model", "Dice"]
    for entry in boards[0].entries:
        assert any(f"{entry.scores.mean_dice:.3f}" in line for line in lines)
    assert "--wide also shows" in text


def test_csv_has_every_case(boards):
    rows = list(csv.DictReader(io.StringIO(to_csv(boards))))
    assert len(rows) == 5 * 8 * 2
    row = next(r for r in rows if r["model"].startswith("nnUNetTrainerRegionKD__") and r["case"] == "box001")
    assert (row["dataset"], row["fold"], row["structure"], row["state"]) == ("Dataset007_Boxes", "0", "a", "scored")
    assert 0 < float(row["dice"]) < 1
    assert any(STRANGE in r["model"] for r in rows)


def test_json_is_strict_and_complete(boards):
    def refuse(constant):
        raise AssertionError(constant)

    loaded = json.loads(to_json(boards), parse_constant=refuse)["datasets"][0]
    assert len(loaded["cases"]) == 5 * 8 * 2
    model = next(m for m in loaded["models"] if m["model"].startswith("nnUNetTrainerRegionKD__"))
    assert model["teacher"] == "nnUNetTrainer__nnUNetPlans__3d_fullres"
    assert model["alone"] == "nnUNetTrainerKDBaseline__nnUNetPlansSmall__3d_fullres"
    assert 0 < model["gap_closed"]["share"] < 1
    assert sum(model["rank_shares"]) == pytest.approx(1)
    assert model["ms_per_case"] is None
    assert loaded["reference"] in (m["model"] for m in loaded["models"])


def test_markdown_and_latex_escape_names(boards):
    markdown = to_markdown(boards)
    assert r"my plans &amp; 50% &lt;b&gt;\_x\_\|y $z$ \[red\]" in markdown
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    assert len({line.replace("\\|", "").count("|") for line in lines}) == 1
    latex = to_latex(boards)
    assert r"my plans \& 50\% \textless{}b\textgreater{}\_x\_|y \$z\$ [red]" in latex
    body = latex[latex.index("\\toprule") : latex.index("\\bottomrule")]
    assert len({line.replace("\\&", "").count("&") for line in body.splitlines() if line.endswith("\\\\")}) == 1


def test_write_all(boards, tmp_path, results):
    results.add("nnUNetTrainerNew", shifted(1))
    files = write_all(boards, tmp_path / "out")
    assert sorted(file.name for file in files) == [
        "index.html",
        "leaderboard.csv",
        "leaderboard.json",
        "leaderboard.md",
        "leaderboard.tex",
    ]
    assert all(file.stat().st_size > 0 for file in files)


@pytest.mark.parametrize("name", ["=cmd|' /C calc'!A1", "+1+1", "-2+3", "@SUM(A1)", "\t=1", "  =1", "|calc", "%0A"])
def test_names_are_no_formulas_to_a_spreadsheet(name):
    assert csv_cell(name) == f"'{name}"


@pytest.mark.parametrize("value", ["hippocampus", "a=b", -0.5, 1, float("nan"), ""])
def test_other_cells_are_as_they_are(value):
    assert csv_cell(value) is value


def test_no_formula_reaches_the_csv(results):
    names = {"background": 0, "=cmd|' /C calc'!A1": 1, "+b": 2}
    results.add("nnUNetTrainer", shifted(0), dataset_json=DATASET_JSON | {"labels": names})
    cells = {
        cell
        for row in csv.reader(
            io.StringIO(to_csv(make_boards(LeaderboardRequest(["7"], torch.device("cpu")), lambda line: None)))
        )
        for cell in row
    }
    assert {"'=cmd|' /C calc'!A1", "'+b"} <= cells
    assert not any(cell.startswith(("=", "+", "@")) for cell in cells)
