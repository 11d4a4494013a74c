import csv
import json
import re
import shutil
from unittest import mock

import numpy as np
import pytest

from nnunetv2_kd.cli.main import main
from nnunetv2_kd.inference.runtimes import is_installed
from nnunetv2_kd.leaderboard import evaluate
from nnunetv2_kd.nnunet.trained_models import find_models
from tests.conftest import DATASET
from tests.room_on_disk import fill, small_disk
from tests.scored_models import shifted, write
from tests.untrained_models import DATASET as UNTRAINED
from tests.untrained_models import add_images, add_model, make_folders

TIMED = ["-d", "7", "--time", "1", "-device", "cpu"]


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
        (["-d", "7", "-i", "images"], "-i also needs"),
        (["-d", "7", "-o", "/dev/null/out"], "-o /dev/null/out cannot be written to"),
        (["-d", "7", "--runtime", "torch"], "--runtime only applies to -i IMAGES and --time N"),
        ([*TIMED, "--precision", "bf16"], "--precision bf16 only applies to --runtime. Add: --runtime openvino"),
        ([*TIMED, "--runtime", "onnx", "--precision", "int8"], "--runtime onnx has no --precision int8. Add:"),
        (
            [*TIMED, "--runtime", "torch", "--precision", "f32", "int8"],
            "None of the given runtimes has --precision int8. Add: --runtime openvino",
        ),
        (
            [*TIMED, "--runtime", "torch", "--precision", "bf16"],
            "nnU-Net's validation was predicted in f32 and says nothing about torch bf16. Predict with it: -i IMAGES",
        ),
    ],
)
def test_refuses(family, capsys, flags, expected, monkeypatch):
    monkeypatch.setattr("nnunetv2_kd.networks.cpu_mode.cpu_has_bfloat16", lambda: True)
    assert main(["leaderboard", *flags]) == 1
    error = capsys.readouterr().err
    assert error.startswith("Error: ")
    assert expected in error
    assert "Traceback" not in error


def test_a_device_that_is_not_there(family, capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main(["leaderboard", "-d", "7", "--time", "1"]) == 1
    assert "This machine has no device cuda. Add: -device cpu" in capsys.readouterr().err


def test_models_that_cannot_be_timed_are_reported(family, capsys):
    """Their checkpoints contain no network."""
    family.add("nnUNetTrainerOther", shifted(0))
    assert main(["leaderboard", "-d", "7", "-np", "1", "--time", "1", "-device", "cpu"]) == 0
    assert "not timed: " in capsys.readouterr().out


def test_a_row_per_model_and_runtime(family, tmp_path, capsys, monkeypatch):
    """nnU-Net's validation was predicted in f32, so models in another precision are timed but not scored."""
    monkeypatch.setattr("nnunetv2_kd.networks.cpu_mode.cpu_has_bfloat16", lambda: True)
    timed = []
    monkeypatch.setattr(evaluate, "measure_costs", lambda rows, costs, *_: timed.extend(rows) or costs)
    flags = ["--runtime", "torch", "measure", "--precision", "f32", "bf16", "-np", "1", "-o", str(tmp_path / "out")]
    assert main(["leaderboard", *TIMED, *flags]) == 0
    (board,) = json.loads((tmp_path / "out" / "leaderboard.json").read_text())["datasets"]
    ways = ["torch f32", "torch bf16", "measure f32", "measure bf16"]
    assert {row["model"] for row in board["models"]} == {
        f"{model.name} in {way}" for model in find_models(UNTRAINED)[0] for way in ways
    }
    assert [(row.runtime, row.precision) for row in timed[:4]] == [tuple(way.split()) for way in ways]
    assert all((row["rank"] is None) == ("bf16" in row["model"]) for row in board["models"])
    out = capsys.readouterr().out.replace("\n", " ")
    assert "in torch bf16: not scored: nnU-Net's validation was predicted in f32" in out
    sizes = re.search(r"best Dice at each size: (.*?\))\.", out)
    assert sizes is not None
    assert sizes[1].count("measure f32") + sizes[1].count("torch f32") == 2  # teacher, one student


@pytest.mark.slow
@pytest.mark.skipif(not is_installed("openvino"), reason="openvino is not installed")
def test_images_are_predicted_in_every_runtime(tmp_path, monkeypatch):
    make_folders(tmp_path, monkeypatch)
    monkeypatch.setenv("nnUNet_kd_cache", str(tmp_path / "cache"))
    model = add_model(tmp_path / "results", "nnUNetTrainer")
    for case in add_images(tmp_path / "images", 1):
        write(tmp_path / "labels" / f"{case}.nii.gz", np.ones((18, 16, 16), np.uint8), (1.0, 1.0, 1.0))
    flags = ["-i", "images", "-gt", "labels", "-o", "out", "--runtime", "torch", "openvino", "--time", "1", "-np", "1"]
    monkeypatch.chdir(tmp_path)
    assert main(["leaderboard", "-d", "7", "-device", "cpu", *flags]) == 0
    (board,) = json.loads((tmp_path / "out" / "leaderboard.json").read_text())["datasets"]
    rows = {row["model"]: row for row in board["models"]}
    assert set(rows) == {f"{model.name} in torch f32", f"{model.name} in openvino f32"}
    first, second = (row["mean_dice"] for row in rows.values())
    assert first > 0.02
    assert first == pytest.approx(second, abs=2e-3)
    assert all(row["ms_per_case"] > 0 and row["peak_mib"] > 50 for row in rows.values())
    stamps = sorted((tmp_path / "out" / "predictions" / UNTRAINED).glob("*/made_with.json"))
    assert [json.loads(stamp.read_text())["runtime"] for stamp in stamps] == ["openvino", "torch"]


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


def test_files_are_written_before_anything_is_shown(family, tmp_path, monkeypatch):
    """If the terminal fails after hours of work, nothing is lost."""
    monkeypatch.setattr(
        "nnunetv2_kd.cli.leaderboard.print_board", mock.Mock(side_effect=UnicodeEncodeError("a", "–", 0, 1, ""))
    )
    with pytest.raises(UnicodeEncodeError):
        main(["leaderboard", "-d", "7", "-np", "1", "-o", str(tmp_path / "out")])
    assert (tmp_path / "out" / "index.html").is_file()


def test_a_disk_that_is_full_leaves_the_files_of_before_whole(family, tmp_path, capsys):
    command = ["leaderboard", "-d", "7", "-np", "1", "-o", str(tmp_path / "out")]
    assert main(command) == 0
    before = {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    with mock.patch("os.fsync", side_effect=OSError(28, "No space left on device")):
        assert main(command) == 1
    assert "No space left on device. What was there before is kept." in capsys.readouterr().err
    assert {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()} == before


def test_a_disk_that_is_really_full(family, tmp_path, capsys):
    command = ["leaderboard", "-d", "7", "-np", "1", "-o", str(tmp_path / "small" / "out")]
    with small_disk(tmp_path / "small", 4):
        assert main(command) == 0
        before = {file.name: file.read_bytes() for file in (tmp_path / "small" / "out").iterdir()}
        filling = fill(tmp_path / "small")
        assert main(command) == 1
        assert "No space left on device. What was there before is kept." in capsys.readouterr().err
        assert {file.name: file.read_bytes() for file in (tmp_path / "small" / "out").iterdir()} == before
        filling.unlink()
        assert main(command) == 0
