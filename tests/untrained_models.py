"""Models in the form in which nnU-Net's trainings leave them, but untrained: tiny networks with random
weights that predict."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

from tests.small_networks import DATASET_JSON, plans

DATASET = "Dataset007_Boxes"
RESAMPLING = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}


def make_folders(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """nnU-Net's three folders, empty, and the variables that name them."""
    for name in ("raw", "preprocessed", "results"):
        (root / name).mkdir()
        monkeypatch.setenv(f"nnUNet_{name}", str(root / name))


def predicting_plans(name: str, features: tuple[int, ...]) -> dict[str, Any]:
    """Plans with everything that preprocessing and export read."""
    made = plans(name, features=features)
    made |= {
        "image_reader_writer": "SimpleITKIO",
        "transpose_backward": [0, 1, 2],
        "original_median_spacing_after_transp": [1.0, 1.0, 1.0],
        "original_median_shape_after_transp": [16, 16, 16],
    }
    for configuration in made["configurations"].values():
        if "architecture" in configuration:
            for what in ("data", "seg", "probabilities"):
                configuration[f"resampling_fn_{what}"] = "resample_data_or_seg_to_shape"
                configuration[f"resampling_fn_{what}_kwargs"] = RESAMPLING | {"is_seg": what == "seg"}
    return made


def add_model(
    results: Path, trainer: str, plans_name: str = "nnUNetPlans", features: tuple[int, ...] = (4, 8), fold: int = 0
) -> Path:
    """Add a model of configuration 3d_fullres under ``results``; returns its folder."""
    folder = results / DATASET / f"{trainer}__{plans_name}__3d_fullres"
    (folder / f"fold_{fold}").mkdir(parents=True)
    made = predicting_plans(plans_name, features)
    architecture = made["configurations"]["3d_fullres"]["architecture"]
    torch.manual_seed(fold)
    network = get_network_from_plans(
        architecture["network_class_name"],
        architecture["arch_kwargs"],
        architecture["_kw_requires_import"],
        1,
        3,
        deep_supervision=False,
    )
    (folder / "plans.json").write_text(json.dumps(made))
    (folder / "dataset.json").write_text(json.dumps(DATASET_JSON))
    checkpoint = {
        "network_weights": network.state_dict(),
        "init_args": {"plans": made, "configuration": "3d_fullres", "fold": fold},
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": (0, 1, 2),
        "current_epoch": 1,
    }
    torch.save(checkpoint, folder / f"fold_{fold}" / "checkpoint_final.pth")
    return folder


def add_images(folder: Path, count: int = 2) -> list[str]:
    """Add images of noise; returns the names of their cases."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    cases = [f"box{i}" for i in range(count)]
    for case in cases:
        image = sitk.GetImageFromArray(rng.normal(size=(18, 16, 16)).astype(np.float32))
        sitk.WriteImage(image, str(folder / f"{case}_0000.nii.gz"))
    return cases
