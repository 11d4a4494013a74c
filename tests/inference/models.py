"""Trained models of every kind as nnU-Net leaves them, untrained and tiny, with images to predict."""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

from tests.small_networks import DATASET_JSON, architecture
from tests.untrained_models import DATASET, predicting_plans

KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "residual": {"residual": True},
    "2d": {"dims": 2},
    "regions": {"regions": True},
    "two channels": {"channels": 2},
    "cascade": {"cascade": True},
    "batch norm": {"norm": "torch.nn.modules.batchnorm.BatchNorm3d"},
    # instance norm that keeps running statistics: OpenVINO's own PyTorch front end ignores them (issue 37954)
    "running statistics": {"norm_kwargs": {"eps": 1e-05, "affine": True, "track_running_stats": True}},
}


def dataset_json_of(channels: int = 1, regions: bool = False) -> dict[str, Any]:
    made = deepcopy(DATASET_JSON) | {"channel_names": {str(i): f"MRI {i}" for i in range(channels)}, "numTraining": 3}
    if regions:
        made |= {"labels": {"background": 0, "whole": [1, 2], "a": [1]}, "regions_class_order": [2, 1]}
    return made


def make_model(
    results: Path,
    trainer: str = "nnUNetTrainer",
    folds: tuple[int, ...] = (0,),
    *,
    dims: int = 3,
    residual: bool = False,
    channels: int = 1,
    regions: bool = False,
    cascade: bool = False,
    norm: str | None = None,
    norm_kwargs: dict[str, Any] | None = None,
    resampled: bool = False,
) -> Path:
    """A model under ``results``; its folder. Its last convolution is scaled up, so that classes are far apart."""
    configuration = "2d" if dims == 2 else "3d_cascade_fullres" if cascade else "3d_fullres"
    plans = predicting_plans("nnUNetPlans", (4, 8))
    plans["foreground_intensity_properties_per_channel"] = {str(i): {"mean": 1.0, "std": 2.0} for i in range(channels)}
    settings = plans["configurations"].pop("3d_fullres" if dims == 3 else "2d")
    settings |= {
        "architecture": architecture(dims, (4, 8, 16), residual=residual),
        "normalization_schemes": ["ZScoreNormalization"] * channels,
        "use_mask_for_norm": [False] * channels,
    }
    kwargs = settings["architecture"]["arch_kwargs"]
    if norm is not None:
        kwargs["norm_op"] = norm
    if norm_kwargs is not None:
        kwargs["norm_op_kwargs"] = norm_kwargs
    if resampled:
        settings["spacing"] = [1.3, 1.2, 1.1][-dims:]
    if cascade:
        settings["previous_stage"] = "3d_lowres"
        plans["configurations"]["3d_lowres"] = deepcopy(settings) | {"next_stage": "3d_cascade_fullres"}
        del plans["configurations"]["3d_lowres"]["previous_stage"]
    plans["configurations"][configuration] = settings
    plans["configurations"].pop("3d_fullres_bs4", None)
    if dims == 2:
        plans["configurations"].pop("3d_fullres", None)
    dataset_json = dataset_json_of(channels, regions)
    folder = results / DATASET / f"{trainer}__nnUNetPlans__{configuration}"
    folder.mkdir(parents=True)
    (folder / "plans.json").write_text(json.dumps(plans))
    (folder / "dataset.json").write_text(json.dumps(dataset_json))
    for fold in folds:
        torch.manual_seed(fold)
        network = get_network_from_plans(
            settings["architecture"]["network_class_name"],
            settings["architecture"]["arch_kwargs"],
            settings["architecture"]["_kw_requires_import"],
            channels + (2 if cascade else 0),
            2 if regions else 3,
            deep_supervision=True,
        )
        for module in network.modules():
            if isinstance(module, (torch.nn.modules.batchnorm._NormBase)) and module.running_mean is not None:
                module.running_mean.uniform_(-0.5, 0.5)
                module.running_var.uniform_(0.5, 1.5)
        (folder / f"fold_{fold}").mkdir()
        checkpoint = {
            "network_weights": network.state_dict(),
            "optimizer_state": {"state": {}, "param_groups": []},
            "init_args": {"plans": plans, "configuration": configuration, "fold": fold, "dataset_json": dataset_json},
            "trainer_name": "nnUNetTrainer",
            "inference_allowed_mirroring_axes": tuple(range(dims)),
            "current_epoch": 1,
        }
        torch.save(checkpoint, folder / f"fold_{fold}" / "checkpoint_final.pth")
    return folder


def make_images(folder: Path, count: int = 2, channels: int = 1, labels: Path | None = None) -> list[str]:
    """Blurred noise whose shape is not a multiple of the patch; with ``labels``, some ground truth too."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    cases = [f"box{i}" for i in range(count)]
    for case in cases:
        for channel in range(channels):
            image = sitk.GetImageFromArray(rng.normal(size=(21, 18, 19)).astype(np.float32))
            sitk.WriteImage(sitk.DiscreteGaussian(image, 1.0), str(folder / f"{case}_{channel:04d}.nii.gz"))
        if labels is not None:
            labels.mkdir(exist_ok=True)
            truth = sitk.GetImageFromArray(rng.integers(0, 3, (21, 18, 19)).astype(np.uint8))
            sitk.WriteImage(truth, str(labels / f"{case}.nii.gz"))
    return cases


def make_previous(folder: Path, cases: list[str]) -> None:
    """Segmentations of a cascade's previous stage."""
    folder.mkdir()
    rng = np.random.default_rng(1)
    for case in cases:
        image = sitk.GetImageFromArray(rng.integers(0, 3, (21, 18, 19)).astype(np.uint8))
        sitk.WriteImage(image, str(folder / f"{case}.nii.gz"))
