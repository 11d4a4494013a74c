"""A student is mirrored only along the axes along which its teacher was."""

import json

import pytest
import torch
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform

from nnunetv2_kd.errors import KDError
from nnunetv2_kd.leaderboard.equal_arms import describe_inequalities
from nnunetv2_kd.record import TeacherRecord
from nnunetv2_kd.trainers import nnUNetTrainerJointKD, nnUNetTrainerKD, nnUNetTrainerKDBaseline, nnUNetTrainerRegionKD
from nnunetv2_kd.trainers.mirroring import common_axes, student_axes
from nnunetv2_kd.trainers.provenance import make_record
from tests.trainers.helpers import inside, log_of, make_trainer

ALL = (0, 1, 2)


def give_axes(world, axes):
    """Change the teacher's checkpoint to that of a trainer that mirrors along these axes."""
    file = world.model("nnUNetTrainer") / "fold_0" / "checkpoint_final.pth"
    torch.save(torch.load(file, weights_only=False) | {"inference_allowed_mirroring_axes": axes}, file)


def started(world, trainer=nnUNetTrainerKD, **options):
    made = make_trainer(trainer, world, **options)
    made.on_train_start()
    return made


def trained_axes(trainer):
    """The axes along which the training's batches are mirrored."""
    transforms = trainer.dataloader_train.data_loader.transforms
    transforms = getattr(transforms, "transforms", transforms)  # ours around nnU-Net's, which are a ComposeTransforms
    found = [t.allowed_axes for t in getattr(transforms, "transforms", transforms) if isinstance(t, MirrorTransform)]
    return tuple(found[0]) if found else None


@pytest.mark.parametrize(("axes", "expected"), [(None, None), ((), None), ((1, 0), (0, 1)), (ALL, ALL)])
def test_the_teachers_axes(here, axes, expected):
    give_axes(here, axes)
    trainer = started(here)
    assert trainer.inference_allowed_mirroring_axes == expected
    assert trained_axes(trainer) == expected
    assert ("Mirroring: the student is mirrored along" in log_of(trainer)) == (expected != ALL)
    assert make_record(trainer).training.mirroring == (expected or ())
    assert make_record(trainer).teachers[0].mirrored_axes == (axes or ())
    file = here.root / "checkpoint.pth"
    trainer.save_checkpoint(str(file))
    assert torch.load(file, weights_only=True)["inference_allowed_mirroring_axes"] == expected


def test_a_checkpoint_that_does_not_say(here):
    """nnU-Net predicts with such a checkpoint without mirroring."""
    file = here.model("nnUNetTrainer") / "fold_0" / "checkpoint_final.pth"
    checkpoint = torch.load(file, weights_only=False)
    del checkpoint["inference_allowed_mirroring_axes"]
    torch.save(checkpoint, file)
    assert started(here).inference_allowed_mirroring_axes is None


def test_the_options_win(here):
    give_axes(here, None)
    trainer = started(here, mirroring="trainer")
    assert trainer.inference_allowed_mirroring_axes == trained_axes(trainer) == ALL
    assert "along axes 0, 1, 2, but its teacher was mirrored along no axis" in log_of(trainer)
    trainer = started(here, mirroring=[1])
    assert trainer.inference_allowed_mirroring_axes == trained_axes(trainer) == (1,)


def test_a_student_alone_can_be_mirrored_alike(here):
    give_axes(here, None)
    distilled, alone = started(here), started(here, nnUNetTrainerKDBaseline)
    assert trained_axes(alone) == ALL
    conditions = [make_record(trainer).training for trainer in (distilled, alone)]
    assert describe_inequalities(*conditions) == ["mirroring none against all axes"]
    alike = started(here, nnUNetTrainerKDBaseline, mirroring=[])
    assert trained_axes(alike) is None
    assert describe_inequalities(conditions[0], make_record(alike).training) == []


def test_a_teacher_trained_beside_the_student_is_mirrored_as_it_is(here):
    assert trained_axes(started(here, nnUNetTrainerJointKD)) == ALL
    assert trained_axes(started(here, nnUNetTrainerJointKD, mirroring=[0])) == (0,)


def test_a_stored_teacher(stored_world, monkeypatch):
    here = inside(stored_world, monkeypatch)
    header = next(here.preprocessed.rglob("store.json"))
    content = json.loads(header.read_text())
    assert content["teachers"][0]["mirrored_axes"] == list(ALL)
    content["teachers"][0] |= {"mirrored_axes": [2]}
    header.write_text(json.dumps(content))
    trainer = started(here, nnUNetTrainerRegionKD, stored_teacher="fold_0")
    assert trainer.inference_allowed_mirroring_axes == trained_axes(trainer) == (2,)
    del content["teachers"][0]["mirrored_axes"]  # as older versions wrote it
    header.write_text(json.dumps(content))
    assert trained_axes(started(here, nnUNetTrainerRegionKD, stored_teacher="fold_0")) == ALL


def teacher(axes):
    return TeacherRecord("folder", "0", "checkpoint_final.pth", "", "nnUNetTrainer", 1, 1, 0, axes)


def test_several_teachers_have_the_axes_of_all_of_them():
    assert common_axes([teacher(ALL), teacher((0, 2))]) == (0, 2)
    assert common_axes([teacher(ALL), teacher(())]) == ()
    assert common_axes([teacher(None), teacher((1,))]) == (1,)
    assert common_axes([teacher(None)]) is None


def test_an_axis_that_the_trainer_does_not_mirror_is_refused():
    with pytest.raises(KDError, match=r"'mirroring: \[0, 2\]' in the options, but T mirrors along axes 0, 1"):
        student_axes((0, 1), (2, 0), None, "T")


def test_no_line_where_nothing_is_restricted():
    assert student_axes(ALL, "teacher", ALL, "T") == (ALL, [])
    assert student_axes(ALL, "trainer", None, "T") == (ALL, [])
    assert student_axes((), "teacher", ALL, "T") == ((), [])


@pytest.mark.parametrize("mirroring", ["students", [3], [-1], 1])
def test_options_that_are_refused(here, mirroring):
    with pytest.raises(KDError, match="mirroring"):
        make_trainer(nnUNetTrainerKD, here, mirroring=mirroring)
