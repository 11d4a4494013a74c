"""Stores of teachers that share neither voxels nor labels with their student, through the commands."""

import json
import shlex
import shutil
from pathlib import Path

import blosc2
import numpy as np
import pytest
import SimpleITK as sitk
import torch
import yaml

from nnunetv2_kd.cli.main import main
from nnunetv2_kd.errors import KDError
from nnunetv2_kd.teachers.stored import quantization
from nnunetv2_kd.teachers.stored.predictor import CasePredictor
from nnunetv2_kd.teachers.stored.store import Store
from nnunetv2_kd.trainers import nnUNetTrainerKD, nnUNetTrainerMultiTeacherKD, nnUNetTrainerRegionKD
from tests.conftest import DATASET, make_tiny
from tests.trainers.helpers import inside, log_of, make_trainer, train

pytestmark = pytest.mark.commands
DATA = "nnUNetPlans_3d_fullres"
TERMS = {"voxel_kl": {}, "region_kl": {}, "region_affinity": {}, "region_graph": {}}


@pytest.fixture
def here(stored_world, monkeypatch):
    monkeypatch.setattr("sys.argv", ["nnUNetv2_kd", "store", "-d", "4", "-device", "cpu"])
    return inside(stored_world, monkeypatch)


def store(*flags):
    return main(["store", "-d", "4", "-device", "cpu", "--disable_tta", *map(str, flags)])


def teacher_with(world, name: str, labels: dict, shift: float = 0.0) -> Path:
    """A copy of the teacher with other labels; all copies but the first also have other weights."""
    folder = world.results / name
    shutil.copytree(world.model("nnUNetTrainer"), folder)
    described = json.loads((folder / "dataset.json").read_text()) | {"labels": labels}
    (folder / "dataset.json").write_text(json.dumps(described))
    file = folder / "fold_0" / "checkpoint_final.pth"
    checkpoint = torch.load(file, weights_only=False)
    checkpoint["network_weights"] = {
        key: value + shift if value.is_floating_point() else value
        for key, value in checkpoint["network_weights"].items()
    }
    torch.save(checkpoint, file)
    return folder


def stored(world, name: str, data: str = DATA) -> tuple[Store, np.ndarray]:
    """A store, and the probabilities of its first case."""
    kept = Store(world.preprocessed / DATASET / f"{data}_teacher_{name}")
    return kept, quantization.decode(blosc2.open(str(kept.folder / f"{kept.header['cases'][0]}.b2nd"))[:])


def test_partial_teachers(here, capsys):
    """A teacher that knows Anterior and one that knows Posterior, alone and together."""
    front = teacher_with(here, "front", {"background": 0, "Anterior": 1, "nothing": 2})
    back = teacher_with(here, "back", {"background": 0, "tail": 2, "nothing": 1}, 0.02)
    assert store("--teacher_folder", front, "-o", "front") == 1
    error = capsys.readouterr().err
    assert f"no teacher knows 'Posterior' ({front}: Anterior, nothing)" in error
    assert "--labels Posterior=THEIR_LABEL" in error
    assert store("--teacher_folder", front, "-o", "front", "--labels", "Posterior=") == 0
    both = ("--teacher_folder", front, "--teacher_folder", back, "--labels", "2:Posterior=tail")
    assert store(*both, "-o", "both") == 0
    assert store("--teacher_folder", back, "--labels", "Posterior=tail", "Anterior=", "-o", "back") == 0
    store("-o", "whole")

    kept, alone = stored(here, "front")
    assert kept.header["known"] == [0]
    assert len(kept.record(kept.header["cases"][0])["dice"]) == 1
    whole = stored(here, "whole")[1]
    np.testing.assert_array_equal(alone, whole[:1])
    together, of_both = stored(here, "both")
    assert "known" not in together.header
    assert [teacher["known"] for teacher in together.header["teachers"]] == [[0], [1]]
    parts = np.concatenate((alone, stored(here, "back")[1]))
    expected = parts / np.maximum(parts.sum(axis=0), 1)
    np.testing.assert_allclose(of_both, expected, atol=2 * quantization.MAX_ERROR + 1e-5)

    trainer = make_trainer(nnUNetTrainerRegionKD, here, stored_teacher="front", terms=TERMS)
    log = train(trainer)
    assert "It knows Anterior. To the distillation terms, everything else is one class" in log
    assert all(0 < row[name] < float("inf") for row in trainer._history.rows for name in TERMS)

    shutil.rmtree(trainer.output_folder)
    trainer = make_trainer(nnUNetTrainerRegionKD, here, stored_teacher="both", terms=TERMS)
    trainer.on_train_start()
    edges = trainer.teacher(next(trainer.dataloader_train)).edges["encoder.1"]
    assert edges.shape == (6, 6)
    assert edges[1::3, 2::3].isnan().all()  # no teacher knows both
    assert not edges[[0, 1, 3, 4]][:, [0, 1, 3, 4]].isnan().any()


def test_running_teachers_with_maps(here):
    """Named in the options; the same labels under other names teach as before."""
    front = teacher_with(here, "front", {"background": 0, "Anterior": 1, "nothing": 2})
    back = teacher_with(here, "back", {"background": 0, "tail": 2, "head": 1}, 0.02)
    both = {"folder": str(back), "labels": {"Anterior": "head", "Posterior": ["tail"]}}
    trainer = make_trainer(nnUNetTrainerKD, here, teacher=both)
    trainer.on_train_start()
    batch = next(trainer.dataloader_train)
    trainer.teacher.label_map = None
    plain = trainer.teacher(batch).logits[0]
    assert make_trainer(nnUNetTrainerKD, here, teacher=both).options.teacher.labels["Posterior"] == ("tail",)

    only = {"folder": str(front), "labels": {}}
    with pytest.raises(KDError, match="No teacher knows Posterior"):
        make_trainer(nnUNetTrainerKD, here, teacher=only).on_train_start()
    only["labels"] = {"Posterior": None}
    trainer = make_trainer(nnUNetTrainerRegionKD, here, teacher=only, terms={**TERMS, "importance_map": {}})
    log = train(trainer)
    assert "It teaches Anterior as Anterior, not Posterior." in log
    assert all(0 < row[name] < float("inf") for row in trainer._history.rows for name in TERMS)

    merged = {"folder": str(back), "labels": {"Anterior": "head", "Posterior": None}}
    second = {"folder": str(front), "labels": {"Anterior": None, "Posterior": "nothing"}}
    trainer = make_trainer(nnUNetTrainerMultiTeacherKD, here, teachers=[merged, second], terms=TERMS)
    trainer.on_train_start()
    output = trainer.teacher(batch)
    assert output.logits[0].shape == plain.shape
    assert output.known is None
    torch.testing.assert_close(output.logits[0].softmax(dim=1).sum(dim=1), torch.ones(2, *plain.shape[2:]))
    assert output.edges["decoder.0"].isnan().any()
    rules = {"teachers": [merged, second], "combine": {"rule": "region"}}
    with pytest.raises(KDError, match="only the rule mean can combine teachers, found region"):
        make_trainer(nnUNetTrainerMultiTeacherKD, here, **rules, terms=TERMS).on_train_start()

    only["labels"] = {"Posterior": "lung"}
    with pytest.raises(KDError, match="the teacher has no label 'lung', only Anterior, nothing"):
        make_trainer(nnUNetTrainerKD, here, teacher=only).on_train_start()


def refusal(trainer) -> str:
    with pytest.raises(KDError) as caught:
        trainer.on_train_start()
    return str(caught.value)


def test_the_line_that_matches_labels_by_name_is_true(here):
    """Labels with other values, and labels of which some are unknown."""
    turned = teacher_with(here, "turned", {"background": 0, "Posterior": 1, "Anterior": 2})
    partial = teacher_with(here, "partial", {"background": 0, "Anterior": 1, "nothing": 2})
    for folder, expected in (
        (turned, "labels: {Anterior: [Anterior], Posterior: [Posterior]}"),
        (partial, "labels: {Anterior: [Anterior], Posterior: null}"),
    ):
        message = refusal(make_trainer(nnUNetTrainerKD, here, teacher={"folder": str(folder)}))
        [line] = [line for line in message.splitlines() if "labels: {Anterior" in line and "add to the teacher" in line]
        assert line.endswith(expected)
        named = yaml.safe_load(line[line.index("labels: {") :])
        trainer = make_trainer(nnUNetTrainerKD, here, teacher={"folder": str(folder), **named})
        trainer.on_train_start()
    assert "The teacher's: Anterior, nothing" in message


def test_the_line_that_stores_a_teacher_of_another_spacing_is_true(here):
    folder = teacher_with(here, "coarse", {"background": 0, "Anterior": 1, "nothing": 2})
    plans = json.loads((folder / "plans.json").read_text())
    plans["configurations"]["3d_fullres"]["spacing"] = [1.5, 1.0, 1.0]
    (folder / "plans.json").write_text(json.dumps(plans))
    message = refusal(make_trainer(nnUNetTrainerKD, here, teacher={"folder": str(folder)}))
    [line] = [line for line in message.splitlines() if "nnUNetv2_kd store" in line]
    assert main(shlex.split(line)[1:]) == 0
    said = yaml.safe_load(message[message.index("stored_teacher: ") :])
    trainer = make_trainer(nnUNetTrainerKD, here, **said)
    trainer.on_train_start()


def test_the_line_that_stores_the_teacher_of_a_coarser_student_is_true(here, capsys):
    assert main(["plan", "-d", "4", "--coarser", "2", "-o", "Coarse", "-c", "3d_fullres"]) == 0
    here.run("nnUNetv2_preprocess", "-d", "4", "-plans_name", "Coarse", "-c", "3d_fullres", "-np", "1")
    message = refusal(make_trainer(nnUNetTrainerKD, here, plans="Coarse"))
    [line] = [line for line in message.splitlines() if "nnUNetv2_kd store" in line]
    assert main(shlex.split(line)[1:]) == 0
    said = yaml.safe_load(message[message.index("stored_teacher: ") :])
    make_trainer(nnUNetTrainerKD, here, plans="Coarse", **said).on_train_start()


def test_a_coarser_student(here, capsys, monkeypatch):
    assert main(["plan", "-d", "4", "--coarser", "2"]) == 0
    output = capsys.readouterr().out
    assert "3d_fullres: 1 x 1 x 1 to 2 x 2 x 2 mm, 7." in output
    assert "nnUNetv2_preprocess -d 4 -plans_name nnUNetPlansCoarser -c 3d_fullres" in output
    assert "nnUNetv2_kd store -d 4 -c 3d_fullres -p nnUNetPlansCoarser -f 0" in output
    file = here.plans_file("nnUNetPlansCoarser")
    plans = json.loads(file.read_text())
    assert list(plans["configurations"]) == ["3d_fullres"]
    assert plans["kd_student"]["made_from"] == "nnUNetPlans"
    assert plans["kd_student"]["spacing"] == {"3d_fullres": [2.0, 2.0, 2.0]}
    configuration = plans["configurations"]["3d_fullres"]
    data = "nnUNetPlansCoarser_3d_fullres_2x2x2"
    assert configuration["data_identifier"] == data
    assert all(side <= 32 for side in configuration["patch_size"])
    make_tiny(file)
    here.run("nnUNetv2_preprocess", "-d", "4", "-plans_name", "nnUNetPlansCoarser", "-c", "3d_fullres", "-np", "1")

    running = make_trainer(nnUNetTrainerKD, here, plans="nnUNetPlansCoarser")
    with pytest.raises(KDError, match="nnUNetv2_kd store -d 4 -c 3d_fullres -p nnUNetPlansCoarser --teacher_folder"):
        running.on_train_start()

    plain = CasePredictor.logits
    grids = []
    monkeypatch.setattr(CasePredictor, "logits", lambda self, image: grids.append(image.shape) or plain(self, image))
    assert store("-p", "nnUNetPlansCoarser") == 0
    error = capsys.readouterr().err
    assert "fold 0 sees the raw images with its own plans (spacing: teacher [1.0, 1.0, 1.0], student [2.0" in error
    kept, probabilities = stored(here, "fold_0", data)
    case = kept.header["cases"][0]
    image = blosc2.open(str(here.preprocessed / DATASET / data / f"{case}.b2nd"))
    assert probabilities.shape[1:] == image.shape[1:]
    fine = stored(here, "fold_0")[1]  # of the same teacher, at its own spacing: the same image, so the same prediction
    assert grids[0][1:] == fine.shape[1:]

    trainer = make_trainer(
        nnUNetTrainerRegionKD, here, plans="nnUNetPlansCoarser", stored_teacher="fold_0", terms=TERMS, epochs=1
    )
    train(trainer)
    assert all(0 < row[name] < float("inf") for row in trainer._history.rows for name in TERMS)
    trainer.perform_actual_validation()
    predicted = next((Path(trainer.output_folder) / "validation").glob("*.nii.gz"))
    raw = here.raw / DATASET / "labelsTr" / predicted.name
    assert sitk.ReadImage(str(predicted)).GetSize() == sitk.ReadImage(str(raw)).GetSize()
    assert "2 x 2 x 2" in log_of(trainer)


def test_images_that_are_gone_or_damaged(here, capsys, monkeypatch):
    """Reported before any teacher runs if possible, and otherwise without losing the other cases."""
    folder = teacher_with(here, "other", {"background": 0, "Anterior": 1, "Posterior": 2})
    plans = json.loads((folder / "plans.json").read_text())
    plans["configurations"]["3d_fullres"]["spacing"] = [1.5, 1.0, 1.0]
    (folder / "plans.json").write_text(json.dumps(plans))
    images = sorted((here.raw / DATASET / "imagesTr").iterdir())
    before = images[0].read_bytes()
    images[0].write_bytes(b"no image")
    flags = ("--teacher_folder", folder, "-o", "other")
    assert store(*flags) == 1
    error = capsys.readouterr().err
    assert "1 of 6 cases cannot be stored; the others are:" in error
    assert f"{images[0].name} cannot be read" in error
    assert "Once that is solved, continue with: nnUNetv2_kd store" in error
    images[0].write_bytes(before)
    assert store(*flags) == 0
    assert "5 of 6 cases are stored already" in capsys.readouterr().err
    images[1].unlink()
    assert store(*flags) == 1
    assert "The raw images of 1 cases are not in" in capsys.readouterr().err
    described = json.loads((folder / "dataset.json").read_text()) | {"channel_names": {"0": "CT"}}
    (folder / "dataset.json").write_text(json.dumps(described))
    images[1].write_bytes(before)
    assert store(*flags) == 1
    assert "the student's images (MRI) have no channel CT" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--labels", "Posterior"], "expected LABEL=THEIR_LABEL[,THEIR_LABEL], found 'Posterior'"),
        (["--labels", "2:Posterior=x"], "is for teacher 2, but there are 1"),
        (["--labels", "Posterior=x", "Posterior=y"], "'Posterior' is mapped twice for teacher 1"),
        (["--labels", "Posterior=lung"], "no teacher has a label 'lung'"),
        (["--weights", "1", "2"], "--weights must be 1 numbers above 0"),
        (["--weights", "-1"], "--weights must be 1 numbers above 0"),
        (["--channels", "MRI"], "--channels must be pairs THEIR_NAME=STUDENTS_NAME, found MRI"),
    ],
)
def test_flags_that_are_refused(here, capsys, flags, expected):
    assert store(*flags) == 1
    assert expected in capsys.readouterr().err
