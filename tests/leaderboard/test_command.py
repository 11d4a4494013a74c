import csv
import json
import shutil

import pytest

from nnunetv2_kd.cli.main import main
from tests.conftest import DATASET
from tests.scored_models import shifted


def test_prints_a_table_and_writes_nothing(family, capsys, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    assert main(["leaderboard", "-d", "7", "-np", "1"]) == 0
    out = capsys.readouterr().out
    assert "RegionKD · Small" in out
    assert "Written" not in out
    assert sorted(tmp_path.rglob("*")) == before


def test_writes_into_a_folder(family, capsys, tmp_path):
    assert main(["leaderboard", "-d", "7", "7", "-np", "1", "-o", str(tmp_path / "my out"), "--tolerance", "2"]) == 0
    out = capsys.readouterr().out
    assert f"Written: {tmp_path / 'my out' / 'index.html'}" in out
    loaded = json.loads((tmp_path / "my out" / "leaderboard.json").read_text())
    assert [d["dataset"] for d in loaded["datasets"]] == ["Dataset007_Boxes"]  # named twice, shown once
    assert loaded["datasets"][0]["tolerance_mm"] == 2


@pytest.mark.slow
def test_worker_processes_score_the_same(family, tmp_path):
    for processes in ("1", "2"):
        assert main(["leaderboard", "-d", "7", "-f", "0", "-np", processes, "-o", str(tmp_path / processes)]) == 0
    first, second = ((tmp_path / p / "leaderboard.csv").read_text() for p in ("1", "2"))
    assert first == second


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["-d", "8"], "There is no dataset 8"),
        (["-d", "7", "-c", "2d"], "No trained model of Dataset007_Boxes with configuration 2d"),
        (["-d", "7", "-np", "0"], "-np must be at least 1"),
        (["-d", "7", "--reference", "Small"], "--reference Small fits 3 of the models"),
        (["-d", "7", "-i", "images"], "-i is given alone"),
        (["-d", "7", "-o", "/dev/null/out"], "-o /dev/null/out cannot be written to"),
    ],
)
def test_refuses(family, capsys, flags, expected):
    assert main(["leaderboard", *flags]) == 1
    error = capsys.readouterr().err
    assert error.startswith("Error: ")
    assert expected in error
    assert "Traceback" not in error


def test_a_device_that_is_not_there(family, capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main(["leaderboard", "-d", "7", "--time", "1"]) == 1
    assert "There is no device cuda here. Add: -device cpu" in capsys.readouterr().err


def test_models_that_cannot_be_timed_are_told(family, capsys):
    """Their checkpoints hold no network."""
    family.add("nnUNetTrainerOther", shifted(0))
    assert main(["leaderboard", "-d", "7", "-np", "1", "--time", "1", "-device", "cpu"]) == 0
    assert "not timed: " in capsys.readouterr().out


@pytest.mark.commands
@pytest.mark.slow
def test_real_models_predict_and_are_timed(world):
    """The command as a user types it, on a trained teacher and its student."""
    world.train("nnUNetTrainerRegionKD")
    images, labels = world.raw / DATASET / "imagesTr", world.raw / DATASET / "labelsTr"
    command = ("nnUNetv2_kd", "leaderboard", "-d", "4", "-np", "1", "-o", "out", "-device", "cpu")
    shutil.rmtree(world.root / "out", ignore_errors=True)
    world.run(*command)
    validated = json.loads((world.root / "out" / "leaderboard.json").read_text())["datasets"][0]
    for model in validated["models"]:
        folder = world.results / DATASET / model["model"]
        summary = json.loads((folder / "fold_0" / "validation" / "summary.json").read_text())
        assert model["mean_dice"] == summary["foreground_mean"]["Dice"]
    done = world.run(*command, "-i", images, "-gt", labels, "--time", "1", installed=True)
    assert "predicting with nnUNetTrainerRegionKD__nnUNetPlans__3d_fullres" in done.stdout
    predicted = json.loads((world.root / "out" / "leaderboard.json").read_text())["datasets"][0]
    assert {model["kind"] for model in predicted["models"]} == {"teacher", "student distilled"}
    for model in predicted["models"]:
        assert model["cases"] == 6
        assert model["ms_per_case"] > 0
        assert model["peak_mib"] > 50
    rows = list(csv.DictReader((world.root / "out" / "leaderboard.csv").open()))
    assert len(rows) == 2 * 6 * 2
    files = sorted((world.root / "out" / "predictions" / DATASET).rglob("*.nii.gz"))
    before = [file.stat().st_mtime_ns for file in files]
    world.run(*command, "-i", images, "-gt", labels)
    assert [file.stat().st_mtime_ns for file in files] == before
