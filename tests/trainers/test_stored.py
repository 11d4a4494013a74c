"""Students of a stored teacher: the same batches, the same terms, and stores that must be refused."""

import csv
import json
import shutil
from pathlib import Path
from unittest import mock

import pytest
import torch

from nnunetv2_kd.cli.main import main
from nnunetv2_kd.errors import KDError
from nnunetv2_kd.methods.region_graph import graph_difference
from nnunetv2_kd.regions import region_vectors
from nnunetv2_kd.trainers import nnUNetTrainerJointKD, nnUNetTrainerKD, nnUNetTrainerKDBaseline, nnUNetTrainerRegionKD
from tests.conftest import DATASET, World, copy_cases, preprocess
from tests.trainers.helpers import inside, log_of, make_trainer, train
from tests.trainers.test_commands import regions_with_ignore

pytestmark = pytest.mark.commands
TERMS = {"voxel_kl": {"temperature": 4.0}, "region_kl": {}, "region_affinity": {}, "region_graph": {}}


@pytest.fixture
def here(stored_world, monkeypatch):
    return inside(stored_world, monkeypatch)


def store_of(world) -> Path:
    return world.preprocessed / DATASET / "nnUNetPlans_3d_fullres_teacher_fold_0"


def started(world, **options):
    """A trainer whose store is open, before any training step."""
    trainer = make_trainer(nnUNetTrainerRegionKD, world, **{"stored_teacher": "fold_0", **options})
    trainer.initialize()
    trainer._start_distillation()
    return trainer


def test_trains_without_the_teacher(here):
    shutil.rmtree(here.model("nnUNetTrainer"))
    trainer = make_trainer(nnUNetTrainerRegionKD, here, stored_teacher="fold_0", terms=TERMS)
    log = train(trainer)
    assert f"Stored teacher: {store_of(here)}, 1 model, mirrored; largest quantization error of a probab" in log
    assert "The stored teacher's Dice on the training cases" in log
    assert all(0 < row[name] < float("inf") for row in trainer._history.rows for name in TERMS)
    assert next(trainer.dataloader_val)["data"].shape[1] == 1  # validation is nnU-Net's own
    checkpoint = torch.load(here.model("nnUNetTrainerRegionKD") / "fold_0" / "checkpoint_final.pth", weights_only=False)
    header = json.loads((store_of(here) / "store.json").read_text())
    recorded = checkpoint["kd"]["teachers"][0]
    assert recorded["sha256"] == header["teachers"][0]["sha256"]
    assert recorded["seen_validation_cases"] == 0
    assert checkpoint["kd"]["stored"]["command"].startswith("nnUNetv2_kd store -d 4")
    assert checkpoint["trainer_name"] == "nnUNetTrainer"


def test_same_batches_as_with_the_teacher_itself(here):
    """The output also has the same shape, except for heads that are missing without deep supervision."""
    batches, outputs = [], []
    for options in ({}, {"stored_teacher": "fold_0"}):
        trainer = make_trainer(nnUNetTrainerRegionKD, here, **options)
        trainer.on_train_start()
        trainer.on_epoch_start()
        batch = next(trainer.dataloader_train)
        outputs.append(trainer.teacher(batch))
        batches.append(batch)
    online, stored = batches
    assert torch.equal(online["data"], stored["data"])
    for one, other in zip(online["target"], stored["target"], strict=True):
        assert torch.equal(one, other)
    assert [z.shape for z in outputs[1].logits] == [(*y.shape[:1], 3, *y.shape[2:]) for y in stored["target"]]
    assert set(outputs[1].edges) == {"encoder.1", "decoder.0"}
    assert outputs[1].edges["encoder.1"].shape == (6, 6)
    torch.testing.assert_close(outputs[1].edges["encoder.1"].diagonal(), torch.ones(6))


def test_a_region_that_is_not_in_the_patch_does_not_count(here):
    """Its vector is from the complete case, which contains the region."""
    trainer = started(here, terms={"region_affinity": {}})
    trainer.on_train_start()
    batch = next(trainer.dataloader_train)
    target = batch["target"][0].clone()
    target[target == 2] = 0
    output = trainer.teacher(batch)
    present = region_vectors(torch.zeros(2, 1, *target.shape[2:]), trainer.loss.labels.regions(target))[1]
    assert not present[:, 2].any()
    edges_s = torch.zeros_like(output.edges["decoder.0"])
    other = output.edges["decoder.0"].clone()
    other[2::3] = other[:, 2::3] = 0.123
    before, after = (
        graph_difference(edges_s, edges, present.flatten()) for edges in (output.edges["decoder.0"], other)
    )
    assert float(before) == float(after)


def cut_short(world):
    file = next(store_of(world).glob("*.b2nd"))
    for file in store_of(world).glob("*.b2nd"):
        file.write_bytes(file.read_bytes()[:-9])


def unfinished(world):
    for file in list(store_of(world).glob("hippocampus*.json"))[1:]:
        file.unlink()


def edited(**changes):
    def change(world):
        file = store_of(world) / "store.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return change


def other_data(world):
    data = world.preprocessed / DATASET / "nnUNetPlans_3d_fullres"
    for file in data.glob("*.b2nd"):
        file.write_bytes(file.read_bytes() + b" ")


def a_case_more(world):
    data = world.preprocessed / DATASET
    for file in list((data / "nnUNetPlans_3d_fullres").glob("hippocampus_001*")):
        shutil.copy(file, file.with_name(file.name.replace("hippocampus_001", "added")))
    splits = json.loads((data / "splits_final.json").read_text())
    splits[0]["train"].append("added")
    (data / "splits_final.json").write_text(json.dumps(splits))


def a_case_less(world):
    for file in (world.preprocessed / DATASET / "nnUNetPlans_3d_fullres").glob("*"):
        file.unlink()


def other_teacher(world):
    file = world.model("nnUNetTrainer") / "fold_0" / "checkpoint_final.pth"
    header = json.loads((store_of(world) / "store.json").read_text())
    header["teachers"][0]["folder"] = str(world.model("nnUNetTrainer"))
    edited(teachers=header["teachers"])(world)
    file.write_bytes(file.read_bytes() + b" ")


@pytest.mark.parametrize(
    ("break_it", "expected"),
    [
        (lambda world: shutil.rmtree(store_of(world)), "There is no stored teacher in .* Make one: nnUNetv2_kd store"),
        (
            cut_short,
            r"(?s)training cases cannot be used.*found \d+ bytes, expected \d+ .*only these cases: nnUNetv2_kd store",
        ),
        (unfinished, "(?s)cannot be used from the store.*: not stored.*only these cases: nnUNetv2_kd store -d 4"),
        (edited(schema=0), "written by another version .*schema 0, expected 1"),
        (
            edited(data_identifier="nnUNetPlans_2d"),
            "data_identifier: nnUNetPlans_2d in the store, nnUNetPlans_3d_fullr",
        ),
        (edited(heads=[5, False]), r"heads: \[5, False\] in the store, \[3, False\] in this training"),
        (other_data, r"(?s)_001.b2nd: changed since the teacher saw it"),
        (a_case_more, "added: not in the store"),
        (other_teacher, "has changed since .*--overwrite"),
        (lambda world: (store_of(world) / "store.json").write_text("{"), "is not valid JSON"),
    ],
    ids=["none", "cut", "unfinished", "schema", "identifier", "heads", "data", "added", "teacher", "header"],
)
def test_stores_that_are_refused(here, break_it, expected):
    """Before any training time is spent."""
    break_it(here)
    with pytest.raises(KDError, match=expected):
        started(here)


def test_a_deleted_case_is_reported(here):
    trainer = make_trainer(nnUNetTrainerRegionKD, here, stored_teacher="fold_0")
    trainer.initialize()
    trainer.do_split()
    a_case_less(here)
    with pytest.raises(KDError, match=r"changed since the teacher saw it \(missing\)"):
        trainer._start_distillation()


def test_terms_on_features_are_refused(here):
    with pytest.raises(KDError, match="importance_map compares features, which are not stored.*remove stored_teacher"):
        started(here, terms={"region_kl": {}, "importance_map": {}})


def test_stages_that_the_teacher_has_not_are_refused(here):
    header = json.loads((store_of(here) / "store.json").read_text())
    header["teachers"][0]["stages"] = {"encoder.0": [1, 1, 1]}
    edited(teachers=header["teachers"])(here)
    with pytest.raises(KDError, match=r"The teacher has no decoder stage of stride \(1, 1, 1\)"):
        started(here)
    header["teachers"][0]["stages"] = {}
    edited(teachers=header["teachers"])(here)
    with pytest.raises(KDError, match="has no region vectors"):
        started(here)


def test_cascades_and_joint_training_are_refused(here):
    trainer = make_trainer(nnUNetTrainerKD, here, stored_teacher="fold_0")
    trainer.initialize()
    with mock.patch.object(trainer, "is_cascaded", True), pytest.raises(KDError, match="cannot be used in a cascade"):
        trainer._start_distillation()
    with pytest.raises(KDError, match="'stored_teacher' in the options"):
        make_trainer(nnUNetTrainerJointKD, here, stored_teacher="fold_0")


def test_a_teacher_of_another_fold_is_a_warning(here):
    trainer = started_fold(here, 1)
    assert "the teacher is of fold 0, the student of fold 1: the teacher was trained on" in log_of(trainer)


def started_fold(world, fold):
    trainer = make_trainer(nnUNetTrainerRegionKD, world, fold=fold, stored_teacher=str(store_of(world)))
    trainer.initialize()
    trainer._start_distillation()
    return trainer


def test_two_dimensions(here):
    train(make_trainer(nnUNetTrainerKDBaseline, here, configuration="2d", student={"width": 1.0}, epochs=1))
    with mock.patch("sys.argv", ["nnUNetv2_kd", "store", "-d", "4", "-c", "2d"]):
        flags = ["-tr", "nnUNetTrainerKDBaseline", "-o", "flat", "--disable_tta", "-device", "cpu"]
        assert main(["store", "-d", "4", "-c", "2d", *flags]) == 0
    trainer = make_trainer(nnUNetTrainerRegionKD, here, configuration="2d", stored_teacher="flat", terms=TERMS)
    assert "distillation: voxel_kl" in train(trainer)
    assert all(row[name] > 0 for row in trainer._history.rows for name in TERMS)


def test_commands_with_worker_processes_and_resuming(stored_world):
    """As a user types them: nnU-Net's augmentation in worker processes, --c and --val; the teacher no longer exists."""
    shutil.rmtree(stored_world.model("nnUNetTrainer"))
    workers = {"nnUNet_n_proc_DA": "2"}
    options = {"stored_teacher": "fold_0", "save_every": 1}
    stored_world.train("nnUNetTrainerRegionKD", **options, epochs=1, validate=False)
    fold = stored_world.model("nnUNetTrainerRegionKD") / "fold_0"
    (fold / "checkpoint_final.pth").rename(fold / "checkpoint_latest.pth")
    log = stored_world.train("nnUNetTrainerRegionKD", "--c", env=workers, **options, installed=True).stdout
    assert "Epoch 1\n" in log
    assert "Mean Validation Dice" in log
    shutil.rmtree(store_of(stored_world))
    assert "Mean Validation Dice" in stored_world.train("nnUNetTrainerRegionKD", "--val", **options).stdout


def test_regions_with_an_ignore_label(tmp_path):
    world = World(tmp_path / "world")
    name = "Dataset005_Variant"
    copy_cases(world.raw, name, 5, regions_with_ignore)
    preprocess(world, "5", name)
    world.train("nnUNetTrainerKDBaseline", dataset="5", student={"width": 1.0}, epochs=1, validate=False)
    world.run("nnUNetv2_kd", "store", "-d", "5", "-tr", "nnUNetTrainerKDBaseline", "-device", "cpu", "--disable_tta")
    world.train("nnUNetTrainerRegionKD", dataset="5", stored_teacher="fold_0", terms=TERMS, epochs=1, validate=False)
    with (world.model("nnUNetTrainerRegionKD", dataset=name) / "fold_0" / "kd_progress.csv").open() as stream:
        last = list(csv.DictReader(stream))[-1]
    assert all(0 < float(last[term]) < float("inf") for term in TERMS)
