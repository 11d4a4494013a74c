"""Measure how long networks take for a whole case on this machine, before they are trained."""

import tempfile
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_kd.choices import Precision, Runtime
from nnunetv2_kd.errors import KDError
from nnunetv2_kd.inference.choose import convert, input_shape, time_in_turns, use_sessions
from nnunetv2_kd.inference.device import prediction_threads, stopwatch
from nnunetv2_kd.inference.predictor import FastPredictor
from nnunetv2_kd.inference.sessions import open_session
from nnunetv2_kd.networks import cpu_mode
from nnunetv2_kd.networks.build import build_network
from nnunetv2_kd.nnunet.plans import Plans
from nnunetv2_kd.students.shapes import Shape

REPEATS = 3


@dataclass
class TimedShape:
    """A shape and its milliseconds.

    Attributes:
        ms_patch: of one forward pass of one patch.
        ms_case: of a whole case of the dataset's median size: estimated from the patches, or measured.
        is_measured: whether ``ms_case`` is measured.
    """

    shape: Shape
    ms_patch: float
    ms_case: float
    is_measured: bool = False


def fastest_within(
    shapes: Sequence[Shape],
    budget: float,
    plans: Plans,
    configuration: str,
    dataset_json: dict[str, Any],
    runtime: Runtime,
    precision: Precision,
    mirroring: bool,
    progress: Callable[..., Any] = iter,
) -> tuple[list[TimedShape], TimedShape]:
    """Time shapes, and pick the first one that predicts a whole case within the budget.

    One patch is timed for every shape, and a whole case estimated: patches x mirrored copies x time per patch, plus the
    time outside the network. The pick is then run on a whole case of noise; if it exceeds the budget, the next is
    tried.

    Args:
        shapes: first the teacher's own, then the others in descending order of capacity.
        budget: milliseconds.
        mirroring: whether a prediction averages over all mirrored copies, nnU-Net's default.
        progress: wraps the shapes, to show progress.

    Returns:
        All shapes, timed, and the one that was picked.

    Raises:
        KDError: if even the fastest takes longer.
    """
    image, properties = median_case(plans, configuration, dataset_json)
    timed: list[TimedShape] = []
    passes, rest = 0, 0.0
    for shape in progress(shapes):
        predictor = untrained_predictor(shape.plans(plans, configuration), configuration, dataset_json, mirroring)
        run = patch_runner(predictor, runtime, precision)
        ms = time_in_turns({"patch": partial(run, torch.zeros(input_shape(predictor)))}, REPEATS + 1)["patch"]
        if not timed:
            passes, rest = _without_network(predictor, image, properties)
        timed.append(TimedShape(shape, ms, passes * ms + rest))
    for candidate in timed[1:] or timed:
        if candidate.ms_case > budget:
            continue
        predictor = untrained_predictor(
            candidate.shape.plans(plans, configuration), configuration, dataset_json, mirroring
        )
        patch_runner(predictor, runtime, precision)
        candidate.ms_case, candidate.is_measured = _case(predictor, image, properties), True
        if candidate.ms_case <= budget:
            return timed, candidate
    least = min(timed, key=lambda candidate: candidate.ms_case)
    raise KDError(
        f"No student of {configuration} predicts a case in {budget:g} ms on this machine: the fastest, {least.shape}, "
        f"takes {least.ms_case:.0f} ms in {runtime} {precision}. Allow more, or use another --runtime or --precision."
    )


def untrained_predictor(
    plans: Plans, configuration: str, dataset_json: dict[str, Any], mirroring: bool
) -> FastPredictor:
    """A predictor with the network that the plans describe, with untrained weights."""
    manager = PlansManager(deepcopy(plans))
    config = manager.get_configuration(configuration)
    network = build_network(plans, configuration, dataset_json, "nnUNetTrainer", deep_supervision=False).eval()
    predictor = FastPredictor(device=torch.device("cpu"), allow_tqdm=False, use_mirroring=mirroring)
    axes = tuple(range(len(config.patch_size)))
    predictor.manual_initialization(
        network, manager, config, [network.state_dict()], dataset_json, "nnUNetTrainer", axes
    )
    return predictor


def patch_runner(predictor: FastPredictor, runtime: Runtime, precision: Precision) -> Callable[[Any], Any]:
    """Let an untrained predictor compute in a runtime; returns the function that runs one patch."""
    threads = prediction_threads()
    if runtime == "torch":
        cpu_mode.set_mode(predictor.network, "float32" if precision == "f32" else "bfloat16")
        return predictor.network
    with tempfile.TemporaryDirectory() as folder:
        file = convert(predictor, 0, "all", runtime, precision, Path(folder), check=False)
        use_sessions(predictor, [open_session(file, runtime, precision, threads)])
    return predictor.network


def median_case(plans: Plans, configuration: str, dataset_json: dict[str, Any]) -> tuple[np.ndarray, dict[str, Any]]:
    """An image of noise with the dataset's median shape and spacing, in the form that nnU-Net's reader returns."""
    manager = PlansManager(deepcopy(plans))
    back = manager.transpose_backward
    shape = [round(plans["original_median_shape_after_transp"][axis]) for axis in back]
    spacing = [float(plans["original_median_spacing_after_transp"][axis]) for axis in back]
    channels = len(dataset_json["channel_names" if "channel_names" in dataset_json else "modality"])
    noise = np.random.default_rng(0).normal(size=(channels, *shape)).astype(np.float32)
    return noise, {"spacing": spacing}


class NoNetwork(torch.nn.Module):
    """Takes the place of the network, counts its calls, and computes nothing."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.calls = 0
        self._output: torch.Tensor | None = None

    def forward(self, data: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        if self._output is None:
            self._output = torch.zeros(1, self.heads, *data.shape[2:])
        return self._output

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return None


def _without_network(predictor: FastPredictor, image: np.ndarray, properties: dict[str, Any]) -> tuple[int, float]:
    """Number of forward passes for one case, and milliseconds spent outside the network."""
    network = predictor.network
    predictor.network = NoNetwork(predictor.label_manager.num_segmentation_heads)
    try:
        _milliseconds(predictor, image, properties)  # lets numba compile
        before = predictor.network.calls
        milliseconds = _milliseconds(predictor, image, properties)
        return predictor.network.calls - before, milliseconds
    finally:
        predictor.network = network


def _case(predictor: FastPredictor, image: np.ndarray, properties: dict[str, Any]) -> float:
    """Milliseconds for a whole case, the fastest of a few runs."""
    return min(_milliseconds(predictor, image, properties) for _ in range(REPEATS))


def _milliseconds(predictor: FastPredictor, image: np.ndarray, properties: dict[str, Any]) -> float:
    clock = stopwatch(prediction_threads())
    started = clock()
    predictor.predict_single_npy_array(image, dict(properties))
    return 1000 * (clock() - started)
