"""A results folder as nnU-Net leaves it, with tiny images and without any training."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.evaluation.evaluate_predictions import compute_metrics, save_summary_json
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.utilities.json_export import recursive_fix_for_json_export

from nnunetv2_kd.nnunet.files import sha256
from tests.small_networks import DATASET_JSON, plans

DATASET = "Dataset007_Boxes"
SPACING = (1.0, 1.0, 3.0)  # SimpleITK's order: x, y, z
Change = Callable[[str, np.ndarray], np.ndarray]


def write(file: Path, array: np.ndarray, spacing: tuple[float, ...] = SPACING) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing)
    sitk.WriteImage(image, str(file))


def truth_of(i: int) -> np.ndarray:
    """Two boxes, at slightly different positions in every case."""
    truth = np.zeros((8, 14, 14), dtype=np.uint8)
    truth[2:6, 2 + i % 3 : 8 + i % 3, 3:7] = 1
    truth[2:6, 2 + i % 3 : 8 + i % 3, 7 : 10 + i % 2] = 2
    return truth


def shifted(rows: int) -> Change:
    return lambda case, truth: np.roll(truth, rows, axis=1)


def eroded(every: int) -> Change:
    """Worse in some cases than in others, so that the differences vary."""
    return lambda case, truth: np.roll(truth, 1 + int(case[-2:]) % every, axis=1)


def without(label: int) -> Change:
    return lambda case, truth: np.where(truth == label, 0, truth).astype(np.uint8)


def record(trainer: str, teacher: dict[str, Any] | None = None, **options: Any) -> dict[str, Any]:
    return {
        "nnunetv2_kd": "0.1.0",
        "trainer": trainer,
        "command": f"nnUNetv2_train 7 3d_fullres 0 -tr {trainer}",
        "options": {"iterations_per_epoch": 10, **options},
        "student": {"made_from": "nnUNetPlans", "width": {"3d_fullres": 0.5}, "convs_per_stage": None},
        "teachers": [teacher] if teacher else [],
    }


@dataclass
class Results:
    """nnU-Net's three folders under `root`; `cases` of fold F are ``boxFNN``."""

    root: Path
    per_fold: int = 8

    @property
    def models(self) -> Path:
        return self.root / "results" / DATASET

    @property
    def truths(self) -> Path:
        return self.root / "preprocessed" / DATASET / "gt_segmentations"

    def cases(self, fold: int) -> list[str]:
        return [f"box{fold}{i:02d}" for i in range(self.per_fold)]

    def make_data(self, folds: int = 2, truth: Callable[[int], np.ndarray] = truth_of) -> None:
        rng = np.random.default_rng(0)
        for fold in range(folds):
            for i, case in enumerate(self.cases(fold)):
                array = truth(i)
                write(self.truths / f"{case}.nii.gz", array)
                image = (array * 50 + rng.normal(0, 5, array.shape)).astype(np.float32)
                write(self.root / "raw" / DATASET / "imagesTr" / f"{case}_0000.nii.gz", image)
        splits = [{"train": [], "val": self.cases(fold)} for fold in range(folds)]
        (self.truths.parent / "splits_final.json").write_text(json.dumps(splits))
        self.models.mkdir(parents=True)

    def add(
        self,
        trainer: str,
        change: Change,
        *,
        plans_name: str = "nnUNetPlans",
        folds: tuple[int | str, ...] = (0,),
        features: tuple[int, ...] = (4, 8),
        kd: dict[str, Any] | None = None,
        dataset_json: dict[str, Any] = DATASET_JSON,
    ) -> Path:
        """Add a trained and validated model whose predictions are the changed truth."""
        folder = self.models / f"{trainer}__{plans_name}__3d_fullres"
        for fold in folds:
            validation = folder / f"fold_{fold}" / "validation"
            validation.mkdir(parents=True)
            cases = self.cases(0 if fold == "all" else int(fold))
            for case in cases:
                truth = sitk.GetArrayFromImage(sitk.ReadImage(str(self.truths / f"{case}.nii.gz")))
                write(validation / f"{case}.nii.gz", change(case, truth))
            self.summarize(folder, fold)
            checkpoint = {
                "network_weights": {"w": torch.ones(3)},
                "init_args": {"plans": {}, "configuration": "3d_fullres", "fold": fold},
                "trainer_name": "nnUNetTrainer",
                "current_epoch": 10,
                "name": folder.name,  # no two models have the same SHA-256
            }
            torch.save(checkpoint | ({"kd": kd} if kd is not None else {}), validation.parent / "checkpoint_final.pth")
        (folder / "plans.json").write_text(json.dumps(plans(plans_name, features=features, strides=None)))
        (folder / "dataset.json").write_text(json.dumps(dataset_json))
        return folder

    def summarize(self, folder: Path, fold: int | str) -> None:
        """summary.json with nnU-Net's own functions, without the processes that it starts for them."""
        validation = folder / f"fold_{fold}" / "validation"
        per_case = [
            compute_metrics(str(self.truths / f.name), str(f), SimpleITKIO(), [1, 2])
            for f in sorted(validation.glob("*.nii.gz"))
        ]
        mean = {
            label: {"Dice": np.nanmean([entry["metrics"][label]["Dice"] for entry in per_case])} for label in (1, 2)
        }
        summary = {
            "metric_per_case": per_case,
            "mean": mean,
            "foreground_mean": {"Dice": np.mean([mean[label]["Dice"] for label in (1, 2)])},
        }
        for part in (*per_case, mean, summary["foreground_mean"]):
            recursive_fix_for_json_export(part)
        save_summary_json(summary, str(validation / "summary.json"))

    def teacher_record(self, folder: Path, fold: int = 0, seen: int | None = 0) -> dict[str, Any]:
        """The record that a student of this teacher has."""
        return {
            "folder": "moved/since",
            "fold": str(fold),
            "checkpoint": "checkpoint_final.pth",
            "sha256": sha256(folder / f"fold_{fold}" / "checkpoint_final.pth"),
            "trainer": "nnUNetTrainer",
            "epoch": 10,
            "params": 1000,
            "seen_validation_cases": seen,
        }


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Results:
    """Two folds of data, no model yet."""
    made = Results(tmp_path)
    made.make_data()
    for variable in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{variable}", str(tmp_path / variable))
    monkeypatch.setenv("COLUMNS", "220")
    return made


@pytest.fixture
def family(results: Results) -> Results:
    """A teacher of stock nnU-Net, a student alone, two distilled students."""
    teacher = results.add("nnUNetTrainer", shifted(0), features=(8, 16))
    small = {"plans_name": "nnUNetPlansSmall"}
    results.add("nnUNetTrainerKDBaseline", eroded(3), kd=record("nnUNetTrainerKDBaseline"), **small)
    kd = record("nnUNetTrainerRegionKD", results.teacher_record(teacher))
    results.add("nnUNetTrainerRegionKD", eroded(2), kd=kd, **small)
    seen = record("nnUNetTrainerKD", results.teacher_record(teacher, seen=5))
    results.add("nnUNetTrainerKD", eroded(4), kd=seen, **small)
    return results
