"""status lists what exists and what can be deleted, and changes nothing."""

import json
import os
import shlex
import time
from pathlib import Path

import pytest
import torch

from nnunetv2_kd.cli.main import main
from tests.conftest import DATASET
from tests.scored_models import eroded, record, results, shifted  # noqa: F401


@pytest.fixture
def full(results):  # noqa: F811
    """A teacher, its student with two seeds, an unfinished training, a failed start, and a replaced model."""
    teacher = results.add("nnUNetTrainer", shifted(0), features=(8, 16))
    kd = record("nnUNetTrainerKD", results.teacher_record(teacher) | {"folder": str(teacher)}, seed=3)
    kd["options"]["terms"] = {"voxel_kl": {"weight": 1}}
    student = results.add("nnUNetTrainerKD", eroded(2), kd=kd) / "fold_0"
    (student / "kd_record.json").write_text(json.dumps(kd))
    (student / "replaced").mkdir()
    (student / "replaced" / "checkpoint_final.pth").write_bytes(b"0" * 2048)
    begun = results.add("nnUNetTrainerKDBaseline", eroded(2), kd=record("x")) / "fold_0"
    (begun / "checkpoint_final.pth").rename(begun / "checkpoint_latest.pth")
    failed = results.models / "nnUNetTrainerRegionKD__nnUNetPlans__3d_fullres" / "fold_0"
    failed.mkdir(parents=True)
    (failed / "training_log.txt").write_text("no teacher")
    for place in (failed, failed / "training_log.txt"):
        os.utime(place, (time.time() - 9999, time.time() - 9999))
    (results.truths.parent / "nnUNetPlansStudent.json").write_text(json.dumps({"kd_student": {}}))
    return results


def test_models_fold_by_fold(full, capsys):
    before = {file: file.read_bytes() for file in full.root.rglob("*") if file.is_file()}
    assert main(["status", "-d", "7"]) == 0
    out = capsys.readouterr().out
    assert {file: file.read_bytes() for file in full.root.rglob("*") if file.is_file()} == before
    for line in (
        "  nnUNetTrainer · nnUNetPlans · 3d_fullres: teacher",
        "KD · nnUNetPlans · 3d_fullres: student distilled, voxel_kl; width 0.5",
    ):
        assert line in out
    assert any("Dice 1.000" in line and "finished" in line for line in out.splitlines())
    assert any("seed 3" in line and "finished" in line for line in out.splitlines())
    assert "unfinished, changed 0 min ago" in out


def test_what_can_be_thrown_away(full, capsys):
    assert main(["status", "-d", "7"]) == 0
    useless = capsys.readouterr().out.split("Can be deleted:")[1]
    assert "a training that another one replaced, 2.0 KiB: rm -r" in useless
    assert f"a training that never saved anything, 10 B: rm -r {full.models}" in useless
    assert "a student's plans that no model uses" in useless
    assert len(useless.strip().splitlines()) == 3


def test_a_dataset_without_a_model(results, capsys):  # noqa: F811
    assert main(["status", "-d", "7"]) == 0
    assert (
        "no model is trained. It is not preprocessed yet: nnUNetv2_plan_and_preprocess -d 7" in capsys.readouterr().out
    )
    assert main(["status", "-d", "8"]) == 1
    assert "There is no dataset 8" in capsys.readouterr().err


@pytest.mark.commands
def test_stores_and_one_whose_teacher_was_trained_again(stored_world):
    status = ("nnUNetv2_kd", "status", "-d", "4")
    folder = stored_world.preprocessed / DATASET / "nnUNetPlans_3d_fullres_teacher_fold_0"
    [line] = [line for line in stored_world.run(*status).stdout.splitlines() if line.startswith("  store ")]
    assert " fold_0: " in line or f" {folder.name}: " in line
    assert "6 of 6 cases" in line
    assert line.endswith("of nnUNetTrainer__nnUNetPlans__3d_fullres, fold 0")

    header = folder / "store.json"
    content = json.loads(header.read_text())
    content["teachers"][0]["folder"] = str(stored_world.model("nnUNetTrainer"))  # of this copy of the world
    header.write_text(json.dumps(content))
    checkpoint = stored_world.model("nnUNetTrainer") / "fold_0" / "checkpoint_final.pth"
    torch.save(torch.load(checkpoint, weights_only=False) | {"current_epoch": 9}, checkpoint)
    useless = stored_world.run(*status).stdout.split("Can be deleted:")[1]
    [line] = [line for line in useless.splitlines() if "a store whose teacher was trained again since" in line]
    *_, remove, flag, place = shlex.split(line)
    assert (remove, flag) == ("rm", "-r")
    assert Path(place) == folder
