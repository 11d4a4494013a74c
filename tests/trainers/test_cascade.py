"""3d_lowres, then 3d_cascade_fullres."""

import json
import re

import blosc2
import numpy as np
import pytest
import SimpleITK as sitk
import torch

from nnunetv2_kd.errors import KDError
from nnunetv2_kd.record import PreviousStageRecord
from nnunetv2_kd.teachers.stored import quantization
from nnunetv2_kd.trainers.cascade import (
    check_previous_stage,
    check_same_previous_stage,
    content,
    folds_that_predict,
    previous_stage_folder,
)
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
    """With the student's own previous stage, and with the teacher's if the student has none."""
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
    of_teacher = world.model("nnUNetTrainer", configuration="3d_lowres") / "predicted_next_stage"
    assert f"Segmentations of the previous stage: {of_teacher}" in log
    fold = world.model("nnUNetTrainerRegionKD", configuration="3d_cascade_fullres") / "fold_all"
    recorded = json.loads((fold / "kd_record.json").read_text())["previous_stage"]
    assert recorded["folder"] == str(of_teacher / "3d_cascade_fullres")
    own = world.model("nnUNetTrainerRegionKD", configuration="3d_lowres") / "predicted_next_stage"
    assert not own.exists()
    check_a_stored_cascade(world)


def check_a_stored_cascade(world):
    """A cascade teaches a student of one stage; the stored probabilities are those of nnU-Net's own prediction."""
    low = world.model("nnUNetTrainer", configuration="3d_lowres")
    images, out = world.raw / DATASET / "imagesTr", world.root / "out"
    predict = ["nnUNetv2_predict", "-d", "4", "-tr", "nnUNetTrainer", "-f", "all", "-i", images, "--disable_tta"]
    predict += ["-device", "cpu", "-npp", "1", "-nps", "1"]
    balance_classes(low / "fold_all" / "checkpoint_final.pth", world, predict)
    world.run(*predict, "-c", "3d_lowres", "-o", out / "low")
    second = ["-c", "3d_cascade_fullres", "-prev_stage_predictions", out / "low", "--save_probabilities"]
    world.run(*predict, *second, "-o", out / "full")

    teacher = world.model("nnUNetTrainer", configuration="3d_cascade_fullres")
    store = ["nnUNetv2_kd", "store", "-d", "4", "-c", "3d_fullres", "-f", "all", "-o", "cascade", "--disable_tta"]
    world.run(*store, "--teacher_folder", teacher, "-device", "cpu")
    kept = world.preprocessed / DATASET / "nnUNetPlans_3d_fullres_teacher_cascade"
    for file in sorted((out / "full").glob("*.npz")):
        expected = np.load(file)["probabilities"][1:]
        stored = quantization.decode(blosc2.open(str(kept / f"{file.stem}.b2nd"))[:])
        assert stored.shape == expected.shape
        assert np.abs(stored - expected).mean() < 0.01
    found = [sitk.GetArrayFromImage(sitk.ReadImage(str(file))) for file in (out / "low").glob("*.nii.gz")]
    assert all(len(np.unique(segmentation)) > 1 for segmentation in found)  # the second stage has something to see


def balance_classes(checkpoint, world, predict):
    """Subtract each class's mean log probability from its bias, so that a barely trained network finds all classes."""
    out = world.root / "out" / "before"
    world.run(*predict, "-c", "3d_lowres", "-o", out, "--save_probabilities")
    mean = np.mean([np.log(np.load(file)["probabilities"]).mean(axis=(1, 2, 3)) for file in out.glob("*.npz")], axis=0)
    content = torch.load(checkpoint, weights_only=False)
    heads = [key for key in content["network_weights"] if "seg_layers" in key and key.endswith("bias")]
    content["network_weights"][max(heads)] -= torch.from_numpy(mean).float()
    torch.save(content, checkpoint)


@pytest.mark.commands
def test_previous_stage_is_asked_for_by_lines_that_make_it(cascaded):
    """They are run: then the cascade trains."""
    done = cascaded.train("nnUNetTrainerKDBaseline", configuration="3d_cascade_fullres", check=False)
    assert done.returncode == 1
    assert "6 of 6 are missing" in done.stderr
    lines = re.findall(r"  - (nnUNetv2_train .+)", done.stderr)
    assert lines == [f"nnUNetv2_train 4 3d_lowres {f} -p nnUNetPlans -tr nnUNetTrainerKDBaseline" for f in range(5)]
    options = str(cascaded.options(epochs=1, iterations_per_epoch=1))
    for line in lines:
        cascaded.run(*line.split(), "-device", "cpu", nnUNet_kd_config=options)
    cascaded.train("nnUNetTrainerKDBaseline", configuration="3d_cascade_fullres", validate=False)


def test_some_cases_are_missing(tmp_path):
    (tmp_path / "a.b2nd").touch()
    (tmp_path / "1.2.840.npz").touch()
    splits = [{"train": ["b"], "val": ["a"]}, {"train": ["a"], "val": ["b"]}, {"train": ["a"], "val": ["b"]}]
    check_previous_stage(str(tmp_path), ["a", "1.2.840"], splits, "train {fold}")
    with pytest.raises(KDError, match=r"1 of 2 are missing \(b\)[\s\S]*\n  - train 1$"):
        check_previous_stage(str(tmp_path), ["a", "b"], splits, "train {fold}")


def test_a_case_that_no_fold_validates_is_made_by_all():
    assert folds_that_predict(["a", "c"], [{"train": ["c"], "val": ["a"]}]) == ["all"]
    assert folds_that_predict([], [{"train": ["c"], "val": ["a"]}]) == []


def test_the_first_complete_set_is_taken(tmp_path):
    cases = ["a", "b"]
    own = tmp_path / "own"
    teacher = tmp_path / DATASET / "nnUNetTrainer__nnUNetPlans__3d_cascade_fullres"
    of_teacher = (
        teacher.parent / "nnUNetTrainer__nnUNetPlans__3d_lowres" / "predicted_next_stage" / "3d_cascade_fullres"
    )

    def found():
        return previous_stage_folder(str(own), teacher, "3d_lowres", "3d_cascade_fullres", cases)

    assert found() == str(own)
    of_teacher.mkdir(parents=True)
    (of_teacher / "a.b2nd").touch()
    assert found() == str(of_teacher)
    own.mkdir()
    assert found() == str(own)
    (of_teacher / "b.b2nd").touch()
    (own / "a.b2nd").touch()
    assert found() == str(of_teacher)  # one fold of one's own does not hide it
    (own / "b.b2nd").touch()
    assert found() == str(own)


def test_a_training_goes_on_with_the_previous_stage_it_began_with(tmp_path):
    (tmp_path / "a.b2nd").write_text("1")
    before = PreviousStageRecord(str(tmp_path), content(str(tmp_path), ["a"]))
    check_same_previous_stage(before, str(tmp_path), ["a"])
    check_same_previous_stage(None, str(tmp_path), ["a"])
    (tmp_path / "b.b2nd").write_text("of another fold")
    check_same_previous_stage(before, str(tmp_path), ["a"])
    (tmp_path / "a.b2nd").write_text("2")
    with pytest.raises(KDError, match="began with other segmentations of the previous stage"):
        check_same_previous_stage(before, str(tmp_path), ["a"])
