"""3d_lowres, then 3d_cascade_fullres."""

import json

import pytest

from nnunetv2_kd.errors import KDError
from nnunetv2_kd.trainers.cascade import check_previous_stage, previous_stage_folder
from tests.conftest import DATASET

ALL = {"fold": "all"}


@pytest.fixture
def cascaded(world):
    """nnU-Net plans no cascade for images this small, so one is written into the plans as nnU-Net would write it."""
    plans = json.loads(world.plans_file().read_text())
    full = plans["configurations"]["3d_fullres"]
    low = json.loads(json.dumps(full)) | {
        "data_identifier": "nnUNetPlans_3d_lowres",
        "spacing": [1.5, 1.5, 1.5],
        "next_stage": "3d_cascade_fullres",
    }
    plans["configurations"]["3d_lowres"] = low
    plans["configurations"]["3d_cascade_fullres"] = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}
    world.plans_file().write_text(json.dumps(plans))
    world.run("nnUNetv2_preprocess", "-d", "4", "-c", "3d_lowres", "-np", "1")
    return world


@pytest.mark.commands
def test_cascade(cascaded):
    """The student's own previous stage, and the teacher's where the student has none."""
    world = cascaded
    for configuration in ("3d_lowres", "3d_cascade_fullres"):
        predicts = configuration == "3d_lowres"  # for the next stage
        world.train(
            "nnUNetTrainerKDBaseline", configuration=configuration, student={"width": 1.0}, validate=predicts, **ALL
        )
        teacher = world.model("nnUNetTrainerKDBaseline", configuration=configuration)
        teacher.rename(world.model("nnUNetTrainer", configuration=configuration))
        if configuration == "3d_lowres":  # the baseline's cascade looks for its own previous stage
            world.model("nnUNetTrainerKDBaseline", configuration=configuration).symlink_to(
                world.model("nnUNetTrainer", configuration=configuration)
            )
    log = world.train("nnUNetTrainerRegionKD", configuration="3d_cascade_fullres", **ALL).stdout
    assert "distillation: region_kl" in log
    assert "Mean Validation Dice" in log
    own = world.model("nnUNetTrainerRegionKD", configuration="3d_lowres") / "predicted_next_stage"
    assert not own.exists()


@pytest.mark.commands
def test_previous_stage_is_asked_for_by_name(cascaded):
    done = cascaded.train("nnUNetTrainerKDBaseline", configuration="3d_cascade_fullres", check=False)
    assert done.returncode == 1
    command = "nnUNetv2_train 4 3d_lowres F -p nnUNetPlans -tr nnUNetTrainerKDBaseline   (F = 0 to 4)"
    assert command in done.stderr
    assert "6 of 6 are missing" in done.stderr


def test_some_cases_are_missing(tmp_path):
    (tmp_path / "a.b2nd").touch()
    (tmp_path / "1.2.840.npz").touch()
    check_previous_stage(str(tmp_path), ["a", "1.2.840"], "command")
    with pytest.raises(
        KDError, match=r"1 of 2 are missing \(b\). Train the previous stage on all folds first: command"
    ):
        check_previous_stage(str(tmp_path), ["a", "b"], "command")


def test_own_previous_stage_comes_first(tmp_path):
    own = tmp_path / "own"
    teacher = tmp_path / DATASET / "nnUNetTrainer__nnUNetPlans__3d_cascade_fullres"
    of_teacher = (
        teacher.parent / "nnUNetTrainer__nnUNetPlans__3d_lowres" / "predicted_next_stage" / "3d_cascade_fullres"
    )
    assert previous_stage_folder(str(own), teacher, "3d_lowres", "3d_cascade_fullres") == str(own)
    of_teacher.mkdir(parents=True)
    assert previous_stage_folder(str(own), teacher, "3d_lowres", "3d_cascade_fullres") == str(of_teacher)
    own.mkdir()
    assert previous_stage_folder(str(own), teacher, "3d_lowres", "3d_cascade_fullres") == str(own)
