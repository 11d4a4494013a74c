"""What reads files of others, as functions of one input, each of which gives something or raises a `KDError`."""

import hashlib
import io
import json
import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from hypothesis import strategies as st

from nnunetv2_kd.config import TeacherOptions
from nnunetv2_kd.inference.exported import check_files, exported_folds, is_exported, read_export
from nnunetv2_kd.leaderboard.evaluate import select_same_task
from nnunetv2_kd.leaderboard.scores import validation_jobs
from nnunetv2_kd.networks.cost import network_cost
from nnunetv2_kd.nnunet.checkpoint import read_checkpoint
from nnunetv2_kd.nnunet.files import sha256
from nnunetv2_kd.nnunet.fold_data import check_fold_data
from nnunetv2_kd.nnunet.model_files import read_model_files
from nnunetv2_kd.nnunet.model_zip import unpack
from nnunetv2_kd.nnunet.trained_models import read_model
from nnunetv2_kd.record import read_record
from nnunetv2_kd.teachers.find import StudentIdentity
from nnunetv2_kd.teachers.load import load_teacher
from nnunetv2_kd.teachers.stored.store import Store
from nnunetv2_kd.trainers.options import resolve_options
from tests.fuzz.inputs import YAML, json_text, mutated, mutated_bytes
from tests.scored_models import record
from tests.small_networks import DATASET_JSON, network
from tests.untrained_models import predicting_plans

FEATURES = (2, 2)
PLANS = predicting_plans("nnUNetPlans", FEATURES)
STUDENT = StudentIdentity("Dataset999_Test", "nnUNetPlans", "3d_fullres", 0)
OPTIONS = {
    "teacher": {"trainer": "nnUNetTrainer", "fold": 0, "labels": {"a": ["a"]}},
    "student": {"width": 0.5},
    "terms": {"voxel_kl": {"weight": 1, "temperature": 2}, "region_affinity": {"stages": ["bottleneck"]}},
    "schedule": {"warmup": 0.1, "decay_from": 0.5, "final": 0},
    "optimizer": {"name": "adamw", "lr": 0.01},
    "combine": {"rule": "mean", "tau": 1.0},
    "ema": 0.9,
    "epochs": 3,
    "mirroring": [0, 1],
    "name": "mine",
    "seed": 1,
}
CONTENT = b"abc"
FINGERPRINT = {"size": len(CONTENT), "mtime_ns": 1, "sha256": hashlib.sha256(CONTENT).hexdigest()}
HEADER = {
    "schema": 1,
    "dataset": "Dataset999_Test",
    "data_identifier": "nnUNetPlans_3d_fullres",
    "heads": [3, False],
    "labels": [["background", 0], ["a", 1], ["b", 2]],
    "regions_class_order": None,
    "teachers": [
        {
            "folder": "/models/T__P__3d_fullres",
            "fold": "0",
            "checkpoint": "checkpoint_final.pth",
            "sha256": "0" * 64,
            "trainer": "nnUNetTrainer",
            "epoch": 10,
            "params": 100,
            "mirrored_axes": [0],
            "fingerprint": FINGERPRINT,
            "mirroring": [0],
            "training_cases": {"dataset": "Dataset999_Test", "cases": ["x"], "fold": None},
            "stages": {"encoder.0": [1, 1, 1]},
        }
    ],
    "cases": ["x"],
    "command": "nnUNetv2_kd store -d 999",
}
CASE = {
    "data": {"x.b2nd": FINGERPRINT},
    "files": {"x.b2nd": FINGERPRINT, "x.npz": FINGERPRINT},
    "error": 0.1,
    "dice": [1],
}
SUMMARY = {
    "metric_per_case": [
        {
            "prediction_file": "validation/x.nii.gz",
            "reference_file": "x.nii.gz",
            "metrics": {label: {"Dice": 0.5, "n_pred": 3, "n_ref": 4} for label in ("1", "2")},
        }
    ]
}
EXPORT = {
    "format": "onnx",
    "precision": "f32",
    "configuration": "3d_fullres",
    "trainer": "nnUNetTrainer",
    "mirroring_axes": [0, 1, 2],
    "folds": {"0": "fold_0/model.onnx"},
    "files": {},
}


@dataclass(frozen=True)
class Target:
    """``run`` takes an input and an empty folder."""

    inputs: st.SearchStrategy[Any]
    run: Callable[[Any, Path], None]


def checkpoint_of(weights: dict[str, torch.Tensor]) -> dict[str, Any]:
    return {
        "network_weights": weights,
        "init_args": {"plans": PLANS, "configuration": "3d_fullres", "fold": 0},
        "trainer_name": "nnUNetTrainer",
        "optimizer_state": {"state": {0: {"step": 1}}, "param_groups": []},
        "inference_allowed_mirroring_axes": [0, 1],
        "current_epoch": 3,
        "kd": record("nnUNetTrainerKD"),
    }


def _weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return network(deep_supervision=False, features=FEATURES).state_dict()


WEIGHTS = _weights()


def _saved(content: Any) -> bytes:
    with io.BytesIO() as stream:
        torch.save(content, stream)
        return stream.getvalue()


CHECKPOINT = _saved(checkpoint_of(WEIGHTS))


def _model(folder: Path, plans: str, dataset_json: str, checkpoint: bytes, name: str = "T__P__3d_fullres") -> Path:
    model = folder / name
    (model / "fold_0").mkdir(parents=True)
    (model / "plans.json").write_text(plans, encoding="utf-8")
    (model / "dataset.json").write_text(dataset_json, encoding="utf-8")
    (model / "fold_0" / "checkpoint_final.pth").write_bytes(checkpoint)
    return model


def _load(model: Path) -> None:
    paths = {f"nnUNet_{name}": str(model.parent / name) for name in ("raw", "preprocessed", "results")}
    with mock.patch.dict(os.environ, paths):
        load_teacher(TeacherOptions(folder=model, fold=0), STUDENT, PLANS, DATASET_JSON, [], deep_supervision=False)


def options(text: str, folder: Path) -> None:
    file = folder / "options.yaml"
    file.write_bytes(text.encode(errors="surrogatepass"))
    resolve_options({"terms": {"voxel_kl": {}}}, {}, file).active_terms()


def options_in_plans(value: Any, folder: Path) -> None:
    resolve_options({}, {"kd": value})


def plans(value: Any, folder: Path) -> None:
    model = _model(folder, json_text(value), json.dumps(DATASET_JSON), CHECKPOINT)
    found, dataset_json = read_model_files(model)
    network_cost(found, "3d_fullres", dataset_json)
    _load(model)


def dataset_json(value: Any, folder: Path) -> None:
    model = _model(folder, json.dumps(PLANS), json_text(value), CHECKPOINT)
    read_model_files(model)
    _load(model)


def checkpoint_bytes(content: bytes, folder: Path) -> None:
    file = folder / "checkpoint_final.pth"
    file.write_bytes(content)
    read_checkpoint(file)


def checkpoint_content(value: Any, folder: Path) -> None:
    if isinstance(value, dict) and value.get("network_weights") == "the weights":
        value = value | {"network_weights": WEIGHTS}
    _load(_model(folder, json.dumps(PLANS), json.dumps(DATASET_JSON), _saved(value)))


def weights(value: Any, folder: Path) -> None:
    """Some of the tensors of other kinds."""
    changed: dict[Any, Any] = dict(WEIGHTS)
    kinds = [torch.int64, torch.complex64, torch.bool, torch.float64, torch.float16]
    for number, kind in value:
        name = list(WEIGHTS)[number % len(WEIGHTS)]
        changed[name] = WEIGHTS[name].to(kinds[kind]) if kind < len(kinds) else WEIGHTS[name] * float("nan")
    _load(_model(folder, json.dumps(PLANS), json.dumps(DATASET_JSON), _saved(checkpoint_of(changed))))


def records(value: Any, folder: Path) -> None:
    read_record(value, "a file")


def stores(value: tuple[Any, Any], folder: Path) -> None:
    """Beside the data that it was made from: with good values it can be used."""
    header, case = value
    data = folder / "Dataset999_Test" / "nnUNetPlans_3d_fullres"
    stored = data.with_name(f"{data.name}_teacher_x")
    stored.mkdir(parents=True)
    data.mkdir()
    for file in (data / "x.b2nd", stored / "x.b2nd", stored / "x.npz"):
        file.write_bytes(CONTENT)
    (stored / "store.json").write_text(json_text(header))
    (stored / "x.json").write_text(json_text(case))
    Store(stored).check(data, (3, False), DATASET_JSON, ["x"])


def exports(value: Any, folder: Path) -> None:
    contents = {
        "plans.json": json.dumps(PLANS),
        "dataset.json": json.dumps(DATASET_JSON),
        "fold_0/model.onnx": "network",
    }
    (folder / "fold_0").mkdir()
    for name, content in contents.items():
        (folder / name).write_text(content)
    if isinstance(value, dict) and value.get("files") == {}:
        value = value | {"files": {name: sha256(folder / name) for name in contents}}
    (folder / "export.json").write_text(json_text(value))
    if is_exported(folder):
        exported_folds(folder)
        check_files(folder, read_export(folder))


def results(value: tuple[Any, Any], folder: Path) -> None:
    summary, splits = value
    model = _model(folder, json.dumps(PLANS), json.dumps(DATASET_JSON), CHECKPOINT)
    (model / "fold_0" / "validation").mkdir()
    (model / "fold_0" / "validation" / "summary.json").write_text(json_text(summary))
    found = read_model(model)
    select_same_task([found])
    validation_jobs(found, folder, [], 1.0)
    data = folder / "data"
    data.mkdir()
    for end in (".b2nd", ".pkl"):
        (data / f"x{end}").touch()
    (folder / "splits_final.json").write_text(json_text(splits))
    check_fold_data(data, 0, ".nii.gz", "nnUNetv2_preprocess")


def zips(value: tuple[bytes, list[str]], folder: Path) -> None:
    content, names = value
    file = folder / "model.zip"
    file.write_bytes(ZIP if names else content)
    if names:
        with zipfile.ZipFile(file, "a") as archive:
            for name in names:
                archive.writestr(name, "{}")
    unpacked = folder / "unpacked"
    unpacked.mkdir()
    try:
        with mock.patch("tempfile.tempdir", str(unpacked)):
            unpack(file, "3d_fullres", 0, "checkpoint_final.pth")
    finally:
        assert {entry.name for entry in folder.iterdir()} == {"model.zip", "unpacked"}
        assert all(entry.name.startswith("nnunetv2_kd_") for entry in unpacked.iterdir())


def _zip() -> bytes:
    with io.BytesIO() as stream:
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
            root = "Dataset999_Test/nnUNetTrainer__nnUNetPlans__3d_fullres"
            archive.writestr(f"{root}/plans.json", json.dumps(PLANS))
            archive.writestr(f"{root}/dataset.json", json.dumps(DATASET_JSON))
            archive.writestr(f"{root}/fold_0/checkpoint_final.pth", CHECKPOINT)
        return stream.getvalue()


ZIP = _zip()
ZIP_NAMES = st.lists(
    st.sampled_from(
        [
            "../evil",
            "/evil",
            "a/../../evil",
            "..\\evil",
            "C:evil",
            "x/plans.json",
            "A__B__3d_fullres/plans.json",
            "../A__B__3d_fullres/plans.json",
            "../A__B__3d_fullres/fold_0/checkpoint_final.pth",
        ]
    ),
    max_size=3,
    unique=True,
)
PLAIN_CHECKPOINT = checkpoint_of(WEIGHTS) | {
    "network_weights": "the weights",
    "init_args": {"plans": {"plans_name": "nnUNetPlans"}, "configuration": "3d_fullres", "fold": 0},
}
TARGETS = {
    "options files": Target(YAML | mutated(OPTIONS).map(json_text), options),
    "options in plans": Target(mutated(OPTIONS), options_in_plans),
    "plans.json": Target(mutated(PLANS), plans),
    "dataset.json": Target(mutated(DATASET_JSON), dataset_json),
    "checkpoints, bytes": Target(mutated_bytes(CHECKPOINT), checkpoint_bytes),
    "checkpoints, content": Target(mutated(PLAIN_CHECKPOINT), checkpoint_content),
    "checkpoints, weights": Target(
        st.lists(st.tuples(st.integers(0, 999), st.integers(0, 5)), min_size=1, max_size=3), weights
    ),
    "records": Target(mutated(record("nnUNetTrainerKD")), records),
    "stores": Target(st.tuples(mutated(HEADER) | st.just(HEADER), mutated(CASE) | st.just(CASE)), stores),
    "exported models": Target(mutated(EXPORT), exports),
    "results folders": Target(
        st.tuples(mutated(SUMMARY), mutated([{"train": ["x"], "val": ["x"]}, {"train": ["y"], "val": ["z"]}])), results
    ),
    "zips": Target(st.tuples(mutated_bytes(ZIP) | st.just(ZIP), ZIP_NAMES), zips),
}
