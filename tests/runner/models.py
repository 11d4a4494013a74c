"""A trained model for nnU-Net's predictor and for the runner, with a function as the same network in both."""

import contextlib
import io
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_kd.inference.choose import use_sessions
from nnunetv2_kd.portable.describe import describe_model
from nnunetv2_kd.runner.model import Model, model_of
from nnunetv2_kd.runner.predictor import Predictor
from tests.untrained_models import predicting_plans

LABELS = {"background": 0, "a": 1, "b": 2, "c": 3}
STATISTICS = {"mean": 20.0, "std": 40.0, "percentile_00_5": -60.0, "percentile_99_5": 110.0}


def plans_of(dims: int = 3, schemes: tuple[str, ...] = ("ZScoreNormalization",), **settings: Any) -> dict[str, Any]:
    """Plans with one configuration; ``transpose`` and ``reader`` are for the plans, everything else
    for the configuration."""
    plans = predicting_plans("nnUNetPlans", (4, 8))
    name = "2d" if dims == 2 else "3d_fullres"
    transpose = settings.pop("transpose", [0, 1, 2])
    plans |= {
        "transpose_forward": list(transpose),
        "transpose_backward": [int(axis) for axis in np.argsort(transpose)],
        "image_reader_writer": settings.pop("reader", "SimpleITKIO"),
        "foreground_intensity_properties_per_channel": {str(i): STATISTICS for i in range(len(schemes))},
    }
    order = settings.pop("order", 3)
    own = plans["configurations"][name]
    own["resampling_fn_data_kwargs"] = own["resampling_fn_data_kwargs"] | {"order": order}
    own |= {"normalization_schemes": list(schemes), "use_mask_for_norm": [False] * len(schemes)}
    own |= {"patch_size": [8, 10, 12][-dims:], "spacing": [1.3, 1.1, 0.9][-dims:]} | settings
    plans["configurations"] = {name: own}
    return plans


def dataset_json_of(channels: int = 1, regions: bool = False, labels: int = 3, ending: str = ".nii.gz") -> dict:
    named = {"background": 0} | {f"label {i}": i for i in range(1, labels + 1)}
    made: dict[str, Any] = {"channel_names": {str(i): f"c{i}" for i in range(channels)}, "file_ending": ending}
    if regions:
        named = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "inner": [3]}
        made["regions_class_order"] = [1, 2, 3]
    return made | {"labels": named}


def network_of(heads: int, seed: int = 0) -> Any:
    """A function ``(1, C, *S)`` to ``(1, heads, *S)`` that gives something else for a mirrored input."""
    rng = np.random.default_rng(seed)
    scale, shift = rng.normal(size=heads), rng.normal(size=heads)

    def run(patch: np.ndarray) -> np.ndarray:
        mean = patch.mean(axis=1)[0]
        ramp = np.linspace(-1, 1, mean.shape[-1], dtype=np.float32)
        smooth = mean + np.roll(mean, 1, axis=-2)
        return np.stack([np.float32(a) * smooth + np.float32(b) * ramp for a, b in zip(scale, shift, strict=True)])[
            None
        ]

    return run


def nnunet_of(plans: dict[str, Any], dataset_json: dict, networks: list, axes: tuple | None) -> nnUNetPredictor:
    """nnU-Net's predictor, whose networks are functions of arrays."""
    manager = PlansManager(deepcopy(plans))
    with contextlib.redirect_stdout(io.StringIO()):
        predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    configuration = manager.get_configuration(next(iter(plans["configurations"])))
    predictor.manual_initialization(None, manager, configuration, None, dataset_json, "nnUNetTrainer", axes)
    use_sessions(predictor, networks)
    return predictor


def model_of_nnunet(*predictors: nnUNetPredictor, folder: Path = Path("."), **changes: Any) -> Model:
    """The same model for the runner."""
    count = [["x.onnx"] * len(predictor.list_of_parameters) for predictor in predictors]
    return model_of(folder, describe_model(predictors, count) | changes)


def runner_of(model: Model, networks: list[list], memory_gb: float = 1.0, scratch: Path = Path("/tmp")) -> Predictor:
    """The runner's predictor, whose networks are functions of arrays."""
    predictor = Predictor.__new__(Predictor)
    predictor.model = model
    predictor._limit, predictor._scratch = memory_gb * 1e9, scratch
    predictor._mirroring = predictor._postprocessing = True
    predictor._networks = networks
    return predictor
