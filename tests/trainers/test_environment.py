"""Checks before a training spends any time."""

import json
from pathlib import Path
from unittest import mock

import pytest
import torch

from nnunetv2_kd.errors import KDError
from nnunetv2_kd.record import read_record
from nnunetv2_kd.trainers import environment, nnUNetTrainerKD
from nnunetv2_kd.trainers.checkpoint import check_same_method, check_same_size, recorded_options
from nnunetv2_kd.trainers.mixin import DistillationMixin
from tests.conftest import DATASET
from tests.scored_models import record
from tests.small_networks import DATASET_JSON, plans
from tests.trainers.helpers import inside, make_trainer


@pytest.mark.parametrize("name", ["fold_0", "T__P__3d_fullres"])
def test_a_folder_that_cannot_be_written_to_is_reported(tmp_path, name):
    folder = tmp_path / "Dataset004_X" / "T__P__3d_fullres" / "fold_0"
    folder.mkdir(parents=True)
    reason = {"side_effect": lambda place: "Permission denied" if place.name == name else ""}
    with (
        mock.patch("nnunetv2_kd.trainers.environment.why_not_writable", **reason),
        pytest.raises(KDError, match=rf"{name} cannot be written to \(Permission denied\).*chmod u\+w '.*{name}'"),
    ):
        environment.check_fold_folder(folder)


def test_a_folder_in_the_place_of_a_file(tmp_path):
    (tmp_path / "T__P__3d_fullres").write_text("")
    with pytest.raises(KDError, match=r"cannot be written to \(.*chmod u\+w"):
        environment.check_fold_folder(tmp_path / "T__P__3d_fullres" / "fold_0")


def test_folds_of_a_trainers_own_are_left_to_it():
    class Own(nnUNetTrainerKD):
        def do_split(self):
            return [], []

    assert environment.splits_as_nnunet(nnUNetTrainerKD, DistillationMixin)
    assert not environment.splits_as_nnunet(Own, DistillationMixin)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"text"])
def test_a_damaged_checkpoint_names_the_one_beside_it(tmp_path, content):
    file = tmp_path / "my fold" / "checkpoint_latest.pth"
    file.parent.mkdir()
    file.write_bytes(content)
    with pytest.raises(KDError, match=r"checkpoint_latest\.pth .*start again with the same command without --c"):
        check_same_size(file, plans(), "3d_fullres", DATASET_JSON)
    (file.parent / "checkpoint_best.pth").touch()
    with pytest.raises(KDError) as refusal:
        check_same_size(file, plans(), "3d_fullres", DATASET_JSON)
    assert str(refusal.value).endswith(
        f"There is also checkpoint_best.pth, from which --c continues once the damaged one is moved away: mv '{file}' "
        f"'{file}.damaged'"
    )


@pytest.mark.parametrize("key", ["trust", "trust_pickle"])
@pytest.mark.parametrize("value", [True, False])
def test_what_a_teacher_is_trusted_with_makes_no_other_student(key, value):
    teacher = {"trainer": "nnUNetTrainer", "fold": 0}
    before = read_record(
        record("nnUNetTrainerKD", teacher=None) | {"options": {"teacher": teacher | {key: value}}}, "f"
    )
    now = recorded_options(before) | {"teacher": teacher | {"trust": not value}}
    check_same_method(before, now, "folder")
    with pytest.raises(KDError, match="started with other options"):
        check_same_method(before, now | {"teacher": teacher | {"fold": 1}}, "folder")


def test_a_training_of_an_earlier_version_goes_on():
    """Its record does not have what has joined the schedule since."""
    schedule = {"warmup": 0.0, "decay_from": 0.3, "final": 0.0}
    before = read_record(record("nnUNetTrainerKD", teacher=None) | {"options": {"schedule": schedule}}, "f")
    now = recorded_options(before) | {"schedule": schedule | {"every": 1}}
    check_same_method(before, now, "folder")
    with pytest.raises(KDError, match="started with other options"):
        check_same_method(before, now | {"schedule": schedule | {"every": 2}}, "folder")


@pytest.mark.commands
def test_a_fold_that_cannot_be_trained_leaves_nothing(world, monkeypatch):
    inside(world, monkeypatch)
    splits = [{"train": ["hippocampus_001", "hippocampus_999"], "val": ["hippocampus_003"]}]
    (world.preprocessed / DATASET / "splits_final.json").write_text(json.dumps(splits))
    trainer = make_trainer(nnUNetTrainerKD, world)
    with pytest.raises(KDError, match=r"hippocampus_999(.|\n)*Preprocess them: nnUNetv2_preprocess -d 4 -c 3d_fullres"):
        trainer.run_training()
    assert not Path(trainer.output_folder).exists()


@pytest.mark.commands
def test_a_teacher_whose_plans_name_strangers_teaches_nobody(world, monkeypatch, tmp_path):
    inside(world, monkeypatch)
    (tmp_path / "strangers.py").write_text(f"open({str(tmp_path / 'RAN')!r}, 'w').close()\n")
    monkeypatch.syspath_prepend(tmp_path)
    file = world.model("nnUNetTrainer") / "plans.json"
    content = json.loads(file.read_text())
    content["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["norm_op"] = "strangers.Norm"
    file.write_text(json.dumps(content))
    with pytest.raises(KDError, match=r"norm_op: strangers\.Norm(.|\n)*'teacher: \{trust: true\}' in the options file"):
        make_trainer(nnUNetTrainerKD, world).run_training()
    assert not (tmp_path / "RAN").exists()
    checkpoint = world.model("nnUNetTrainer") / "fold_0" / "checkpoint_final.pth"
    assert torch.load(checkpoint, weights_only=False)["trainer_name"]  # as it was
