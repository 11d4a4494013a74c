import json
import math
import sys
from typing import Any

import pytest
import torch

from nnunetv2_kd.errors import KDError
from nnunetv2_kd.record import (
    EnvironmentRecord,
    Record,
    ShrinkRecord,
    StoredTeacherRecord,
    TeacherRecord,
    TrainingRecord,
    environment_on,
    read_record,
)

TEACHER = {
    "folder": "results/Dataset004_Hippocampus/nnUNetTrainer__nnUNetPlans__3d_fullres",
    "fold": "0",
    "checkpoint": "checkpoint_final.pth",
    "sha256": "0" * 64,
    "trainer": "nnUNetTrainer",
    "epoch": 1000,
    "params": 1402835,
    "seen_validation_cases": None,
}


def first_form(**changes: Any) -> dict[str, Any]:
    """A record as the first version 0.1.0 wrote it, before it had trainings and environments."""
    return {
        "nnunetv2_kd": "0.1.0",
        "trainer": "nnUNetTrainerRegionKD",
        "command": "nnUNetv2_train 4 3d_fullres 0 -tr nnUNetTrainerRegionKD -device cpu",
        "options": {"teachers": None, "epochs": 5, "iterations_per_epoch": None, "seed": 0},
        "student": {"made_from": "nnUNetPlans", "width": {"3d_fullres": 0.5}, "convs_per_stage": None},
        "teachers": [TEACHER],
        **changes,
    }


def of_now() -> Record:
    return Record(
        nnunetv2_kd="0.1.0",
        trainer="nnUNetTrainerRegionKD",
        command="nnUNetv2_train 4 3d_fullres 0",
        options={"iterations_per_epoch": None},
        student=ShrinkRecord("nnUNetPlans", {"3d_fullres": 0.5}),
        teachers=(TeacherRecord(**TEACHER),),
        stored=StoredTeacherRecord("store", "nnUNetv2_kd store -d 4", (0, 1, 2), 0.004, (0.9, math.nan)),
        methods={"mine": "mine.py"},
        training=TrainingRecord(epochs=1000, iterations_per_epoch=250, batch_size=2, cases=208),
        environment=EnvironmentRecord("3.11.4", "2.8.0", "2.8.1", "NVIDIA H100"),
    )


def test_a_record_of_the_first_form_is_read():
    record = read_record(first_form(), "file")
    assert record.teachers == (TeacherRecord(**TEACHER),)
    assert record.student == ShrinkRecord("nnUNetPlans", {"3d_fullres": 0.5}, None)
    assert record.stored is record.training is record.environment is None
    assert record.iterations_per_epoch is None
    assert record.methods == {}
    assert read_record(first_form(options={"iterations_per_epoch": 10}), "file").iterations_per_epoch == 10


def test_what_was_recorded_goes_before_what_was_asked_for():
    assert of_now().iterations_per_epoch == 250


def test_written_and_read_again():
    written = of_now().as_dict()
    again = read_record(json.loads(of_now().as_json()), "file")
    assert math.isnan(again.stored.training_dice[1])
    assert repr(again) == repr(of_now()) == repr(read_record(written, "file"))


def test_only_plain_values_are_written():
    """A checkpoint that contains a class of ours could not be loaded elsewhere."""

    def types(value: Any) -> set[type]:
        if isinstance(value, dict):
            return {dict, *(t for pair in value.items() for part in pair for t in types(part))}
        if isinstance(value, list):
            return {list, *(t for part in value for t in types(part))}
        return {type(value)}

    assert types(of_now().as_dict()) == {dict, list, str, int, float, type(None)}


def test_what_a_later_version_adds_is_left_out():
    later = first_form(teachers=[TEACHER | {"colour": "blue"}], colour="green")
    assert read_record(later, "file") == read_record(first_form(), "file")


def test_a_record_that_cannot_be_understood_names_file_and_place():
    broken = first_form(teachers=[{"sha256": 3}])
    del broken["trainer"]
    with pytest.raises(
        KDError, match=r"(?s)^x.pth holds .*trainer: is missing.*teachers.0.sha256: must be text \(found 3\)"
    ):
        read_record(broken, "x.pth")


def test_environment_is_the_one_at_hand():
    here = environment_on("the device")
    assert torch.__version__.startswith(here.torch)
    assert here.nnunetv2.startswith("2.")
    assert sys.version.startswith(here.python)
    assert here.device == "the device"
