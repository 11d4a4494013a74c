"""nnU-Net's own commands with our trainers, on real cases."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
import torch

from nnunetv2_kd.nnunet.checkpoint import allowed_globals
from nnunetv2_kd.trainers.options import resolve_options
from tests.conftest import BIN, DATASET, LOG, World, copy_cases, copy_of, made_once, preprocess, with_log
from tests.in_process import run_in_process
from tests.test_interruption import ended, linux

pytestmark = pytest.mark.commands
TRAINER = "nnUNetTrainerRegionKD"


@pytest.fixture(scope="session")
def distilled(trained_world, tmp_path_factory) -> World:
    """A student trained with the command from the README. Do not write to it: use `own_distilled`."""

    def make(root: Path) -> None:
        log = copy_of(trained_world, root).train(TRAINER, installed=True).stdout
        (root / LOG).write_text(log)

    return with_log(made_once(tmp_path_factory, "distilled", make))


@pytest.fixture
def own_distilled(distilled, tmp_path) -> World:
    """A copy of `distilled` for one test."""
    return copy_of(distilled, tmp_path / "distilled")


def run_stock(python: Path, world: World, command: str, *arguments: object) -> str:
    """Run one of nnU-Net's commands under another Python."""
    module, function = {
        "nnUNetv2_predict": ("nnunetv2.inference.predict_from_raw_data", "predict_entry_point"),
        "nnUNetv2_find_best_configuration": (
            "nnunetv2.evaluation.find_best_configuration",
            "find_best_configuration_entry_point",
        ),
        "nnUNetv2_export_model_to_zip": ("nnunetv2.model_sharing.entry_points", "export_pretrained_model_entry"),
        "nnUNetv2_install_pretrained_model_from_zip": (
            "nnunetv2.model_sharing.entry_points",
            "install_from_zip_entry_point",
        ),
    }[command]
    code = (
        f"import sys; sys.argv[0] = '{command}'\nfrom {module} import {function}\n"
        f"if __name__ == '__main__': {function}()"
    )
    script = world.root / f"{command}.py"
    script.write_text(code)
    environment = {k: v for k, v in world.environment().items() if k != "nnUNet_extTrainer"}
    done = subprocess.run(
        [python, script, *map(str, arguments)], env=environment, capture_output=True, text=True, cwd=world.root
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def segmentations(folder: Path) -> dict[str, np.ndarray]:
    return {f.name: SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(f))) for f in folder.glob("*.nii.gz")}


def test_log_tells_teacher_student_and_terms(distilled):
    fold = distilled.model(TRAINER) / "fold_0"
    log = distilled.log
    assert "Student: 8.40 k parameters" in log
    assert "width 0.5 of nnUNetPlans; made by this trainer" in log
    assert f"Teacher: {distilled.model('nnUNetTrainer')}, fold 0, checkpoint_final.pth (SHA-256 " in log
    assert "Teacher's pseudo Dice on 5 validation batches" in log
    assert "WARNING: this is poor" in log
    for term in ("region_kl", "region_affinity"):
        assert re.search(rf" distillation: .*{term} ", log)
    with (fold / "kd_progress.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [float(row["epoch"]) for row in rows] == [0, 1]
    assert all(float(row["region_kl"]) > 0 for row in rows)
    assert (fold / "kd_progress.png").stat().st_size > 10_000
    assert (fold / "progress.png").stat().st_size > 10_000


def test_checkpoint_is_stock_and_plain(distilled):
    """Loads with weights_only and the numbers that nnU-Net itself leaves in its checkpoints."""
    fold = distilled.model(TRAINER) / "fold_0"
    with torch.serialization.safe_globals(allowed_globals()):
        checkpoint = torch.load(fold / "checkpoint_final.pth", weights_only=True)
    assert checkpoint["trainer_name"] == "nnUNetTrainer"
    assert checkpoint["kd"]["trainer"] == TRAINER
    assert checkpoint["kd"]["teachers"][0]["seen_validation_cases"] == 0
    assert not list(fold.glob("*.unfinished"))
    parameters = sum(
        value.numel()
        for key, value in checkpoint["network_weights"].items()
        if "all_modules" not in key and not key.startswith("decoder.encoder")
    )
    assert parameters < 8400 + 100


def test_options_travel(distilled):
    fold = distilled.model(TRAINER) / "fold_0"
    record = json.loads((fold / "kd_record.json").read_text())
    again = resolve_options({}, {}, fold / "kd_options.yaml")
    assert again.model_dump(mode="json") == record["options"]
    assert list(again.active_terms()) == ["region_kl", "region_affinity"]
    assert record["command"].startswith("nnUNetv2_train 4 3d_fullres 0 -tr nnUNetTrainerRegionKD")
    options = record["options"]
    assert record["training"]["epochs"] == options["epochs"]
    assert record["training"]["iterations_per_epoch"] == options["iterations_per_epoch"]
    splits = json.loads((distilled.preprocessed / DATASET / "splits_final.json").read_text())
    assert record["training"]["cases"] == len(splits[0]["train"])
    assert torch.__version__.startswith(record["environment"]["torch"])


def test_student_predicts_without_the_plugin(own_distilled, stock_python):
    distilled = own_distilled
    images = distilled.root / "images"
    images.mkdir()
    for image in sorted((distilled.raw / DATASET / "imagesTr").iterdir())[:2]:
        shutil.copy(image, images)
    flags = (
        "-i",
        images,
        "-d",
        "4",
        "-c",
        "3d_fullres",
        "-tr",
        TRAINER,
        "-f",
        "0",
        "-device",
        "cpu",
        "-npp",
        "1",
        "-nps",
        "1",
    )
    run_stock(stock_python, distilled, "nnUNetv2_predict", *flags, "-o", distilled.root / "without")
    distilled.run("nnUNetv2_predict", *flags, "-o", distilled.root / "with", installed=True)
    without, with_plugin = (segmentations(distilled.root / name) for name in ("without", "with"))
    assert len(without) == 2
    for name, segmentation in without.items():
        np.testing.assert_array_equal(segmentation, with_plugin[name])


def test_student_can_be_sent_and_compared_without_the_plugin(own_distilled, stock_python, tmp_path):
    distilled = own_distilled
    archive = tmp_path / "student.zip"
    run_stock(
        stock_python,
        distilled,
        "nnUNetv2_export_model_to_zip",
        "-d",
        "4",
        "-o",
        archive,
        "-c",
        "3d_fullres",
        "-tr",
        TRAINER,
        "-f",
        "0",
    )
    other = World(tmp_path / "other")
    for folder in (other.raw, other.preprocessed, other.results):
        folder.mkdir(parents=True)
    run_stock(stock_python, other, "nnUNetv2_install_pretrained_model_from_zip", archive)
    assert (other.model(TRAINER) / "fold_0" / "checkpoint_final.pth").is_file()
    # a probability map for every case is nnU-Net's own condition for comparing
    distilled.run("nnUNetv2_train", "4", "3d_fullres", "0", "-tr", TRAINER, "-device", "cpu", "--val", "--npz")
    run_stock(
        stock_python,
        distilled,
        "nnUNetv2_find_best_configuration",
        "4",
        "-c",
        "3d_fullres",
        "-tr",
        TRAINER,
        "-f",
        "0",
        "--disable_ensembling",
        "-np",
        "1",
    )
    best = json.loads((distilled.results / DATASET / "inference_information.json").read_text())
    assert best["best_model_or_ensemble"]["selected_model_or_models"][0]["trainer"] == TRAINER


def test_validation_needs_no_teacher(own_distilled):
    shutil.rmtree(own_distilled.model("nnUNetTrainer"))
    assert "Mean Validation Dice" in own_distilled.train(TRAINER, "--val").stdout


def train_curve(world: World) -> list[str]:
    return (world.model(TRAINER) / "fold_0" / "kd_progress.csv").read_text().splitlines()


def test_killed_training_resumes_to_the_same_curve(world):
    """Killed in the middle of an epoch; after --c, the losses are those of a training that was never interrupted."""
    options = {"epochs": 4, "iterations_per_epoch": 3, "save_every": 1}
    world.train(TRAINER, **options, validate=False)
    uninterrupted = train_curve(world)
    shutil.rmtree(world.model(TRAINER))
    file = world.options(**options)
    command = [BIN / "nnUNetv2_train", "4", "3d_fullres", "0", "-tr", TRAINER, "-device", "cpu"]
    environment = world.environment(nnUNet_kd_config=str(file), PYTHONUNBUFFERED="1")
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if "Epoch 2" in line:
                time.sleep(0.2)
                process.send_signal(signal.SIGKILL)
                break
    resumed = world.train(TRAINER, "--c", **options, validate=False)
    assert "Epoch 0" not in resumed.stdout.split("Student:")[1]
    assert train_curve(world) == uninterrupted


def descendants(process: int) -> list[int]:
    found = subprocess.run(["pgrep", "-P", str(process)], capture_output=True, text=True).stdout.split()
    return [one for child in map(int, found) for one in (child, *descendants(child))]


@pytest.mark.slow
@linux
@pytest.mark.parametrize(
    ("sent", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_an_ended_training_leaves_no_data_worker(world, tmp_path, sent, status):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    file = world.options(epochs=100, iterations_per_epoch=3, save_every=1)
    command = [BIN / "nnUNetv2_train", "4", "3d_fullres", "0", "-tr", TRAINER, "-device", "cpu"]
    environment = world.environment(nnUNet_kd_config=str(file), PYTHONUNBUFFERED="1", TMPDIR=str(temporary))
    environment["nnUNet_n_proc_DA"] = "2"
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        for line in process.stdout:
            if "Epoch 2" in line:
                break
        workers = descendants(process.pid)
        assert len(workers) >= 2
        process.send_signal(sent)
        printed = process.stdout.read()
        assert process.wait(120) == status, printed
    assert all(ended(worker) for worker in workers)
    if sent != signal.SIGKILL:
        assert "Interrupted in epoch 2. Go on from checkpoint_latest.pth:\n" in printed
        assert "--c" in printed.split("Go on from", 1)[1]
        assert "Traceback" not in printed
        assert list(temporary.glob("pymp-*")) == []


def test_resuming_with_another_size_is_refused(own_distilled):
    done = own_distilled.train(TRAINER, "--c", check=False, student={"width": 0.25})
    assert done.returncode != 0
    assert "export nnUNet_kd_config='" in done.stderr
    assert "in the checkpoint: 8.40 k parameters, channels [2, 4, 8, 8]" in done.stderr
    assert "asked for now:     " in done.stderr
    assert "channels [1, 2, 4, 4]" in done.stderr


def test_number_of_epochs_in_the_name(world):
    done = world.train(f"{TRAINER}_1epoch", epochs=7, validate=False)
    assert "Epoch 0\n" in done.stdout
    assert "Epoch 1\n" not in done.stdout
    assert world.model(f"{TRAINER}_1epoch").is_dir()


def test_shrunken_plans_file(world):
    world.run("nnUNetv2_kd", "plan", "-d", "4", "-o", "nnUNetPlansSmall", "--width", "0.25")
    log = world.train(TRAINER, "-p", "nnUNetPlansSmall", validate=False).stdout
    assert "width 0.25 of nnUNetPlans; read from the plans file" in log
    assert f"Teacher: {world.model('nnUNetTrainer')}" in log


def test_2d(world):
    world.train("nnUNetTrainerKDBaseline", configuration="2d", student={"width": 1.0}, validate=False)
    log = world.train("nnUNetTrainerKD", configuration="2d", teacher={"trainer": "nnUNetTrainerKDBaseline"}).stdout
    assert "distillation: voxel_kl" in log
    assert world.model("nnUNetTrainerKD", configuration="2d").is_dir()


def as_regions(dataset_json: dict) -> None:
    dataset_json["labels"] = {"background": 0, "hippocampus": [1, 2], "anterior": [1]}
    dataset_json["regions_class_order"] = [2, 1]


def with_ignore(dataset_json: dict) -> None:
    dataset_json["labels"] = {"background": 0, "Anterior": 1, "ignore": 2}


def regions_with_ignore(dataset_json: dict) -> None:
    dataset_json["labels"] = {"background": 0, "hippocampus": [1], "ignore": 2}
    dataset_json["regions_class_order"] = [1]


@pytest.mark.parametrize("change", [as_regions, with_ignore, regions_with_ignore])
def test_regions_and_ignore_label(tmp_path, change):
    world = World(tmp_path / "world")
    name = "Dataset005_Variant"
    copy_cases(world.raw, name, 5, change)
    preprocess(world, "5", name)
    world.train("nnUNetTrainerKDBaseline", dataset="5", student={"width": 1.0}, validate=False)
    world.model("nnUNetTrainerKDBaseline", dataset=name).rename(world.model("nnUNetTrainer", dataset=name))
    terms = {
        "voxel_kl": {},
        "region_kl": {"membership": "labels"},
        "importance_map": {},
        "region_affinity": {"stages": ["encoder.0", "decoder.-1"]},
    }
    log = world.train(TRAINER, dataset="5", terms=terms).stdout
    assert "Mean Validation Dice" in log
    with (world.model(TRAINER, dataset=name) / "fold_0" / "kd_progress.csv").open() as stream:
        last = list(csv.DictReader(stream))[-1]
    assert all(0 < float(last[term]) < float("inf") for term in terms)


@pytest.mark.parametrize(
    ("break_it", "expected"),
    [
        (lambda w: shutil.rmtree(w.model("nnUNetTrainer") / "fold_0"), "Train it with: nnUNetv2_train 4 3d_fullres 0"),
        (lambda w: _checkpoint(w).write_bytes(_checkpoint(w).read_bytes()[:5000]), "truncated, empty, or"),
        (lambda w: _checkpoint(w).write_bytes(b""), "truncated, empty, or"),
        (lambda w: _edit(w, "dataset.json", lambda d: d["labels"].update(Third=3)), "labels: teacher"),
        (lambda w: _edit(w, "dataset.json", lambda d: d.update(channel_names={"0": "CT"})), "input channels: teacher"),
        (lambda w: _edit(w, "plans.json", _other_spacing), "spacing: teacher [2.0, 1.0, 1.0]"),
    ],
    ids=["none", "truncated", "empty", "labels", "channels", "spacing"],
)
def test_unfit_teachers(world, break_it, expected, request):
    """The exit status is not 0, and the reason is printed last, before any epoch."""
    break_it(world)
    done = world.train(TRAINER, check=False, installed=request.node.callspec.id == "labels")
    assert done.returncode == 1
    assert expected in done.stderr
    assert "Epoch 0" not in done.stdout
    assert "site-packages/torch" not in done.stderr


def _checkpoint(world: World) -> Path:
    return world.model("nnUNetTrainer") / "fold_0" / "checkpoint_final.pth"


def _edit(world: World, name: str, change) -> None:
    file = world.model("nnUNetTrainer") / name
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def _other_spacing(plans: dict) -> None:
    plans["configurations"]["3d_fullres"]["spacing"] = [2.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("value", "expected"),
    [(None, "export nnUNet_results="), ("/dev/null/results", "cannot be written to (Not a directory)")],
)
def test_results_folder(world, value, expected):
    file = world.options()
    environment = world.environment(nnUNet_kd_config=str(file))
    environment = {k: v for k, v in environment.items() if k != "nnUNet_results"}
    environment |= {"nnUNet_results": value} if value else {}
    arguments = ["4", "3d_fullres", "0", "-tr", TRAINER, "-device", "cpu"]
    done = run_in_process("nnUNetv2_train", arguments, environment, Path(os.sep))
    assert done.returncode == 1
    assert expected in done.stderr
