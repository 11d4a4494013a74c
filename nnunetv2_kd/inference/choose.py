"""Run a predictor's network in a given runtime, or in the fastest one."""

import copy
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from torch import nn

from nnunetv2_kd import __version__
from nnunetv2_kd.choices import CpuMode, Precision, Runtime, RuntimeChoice
from nnunetv2_kd.errors import KDError, listing
from nnunetv2_kd.inference.cache import get_or_make
from nnunetv2_kd.inference.calibrate import calibration_patches
from nnunetv2_kd.inference.convert import ONNX_FILE, OPENVINO_FILE, write_int8, write_onnx, write_openvino
from nnunetv2_kd.inference.device import device_name, prediction_threads, stopwatch
from nnunetv2_kd.inference.runtimes import NAMES, PACKAGES, check_runtime, package_version, runtimes_for
from nnunetv2_kd.inference.sessions import Session, SessionNetwork, open_session
from nnunetv2_kd.networks import cpu_mode
from nnunetv2_kd.networks.build import plain_network
from nnunetv2_kd.networks.threads import torch_threads
from nnunetv2_kd.nnunet.files import sha256
from nnunetv2_kd.nnunet.model_folder import fold_name

ROUNDS = 4
SECONDS = 30.0  # limit on measuring: a large network is measured fewer times
ROUNDING = 2e-3  # of the largest logit: how much a float32 conversion may change; a wrong operator changes far more
TORCH_MODES: dict[Precision, tuple[CpuMode, ...]] = {
    "f32": ("float32", "float32_channels_last"),
    "bf16": ("bfloat16", "bfloat16_channels_last"),
    "int8": (),
}


@dataclass(frozen=True)
class ChosenRuntime:
    """What a network runs in.

    Attributes:
        runtime, precision: as on the command line.
        mode: how torch computes; only for torch.
        ms: measured milliseconds per patch of every candidate; empty if nothing was measured.
        problems: why a runtime was left out.
    """

    runtime: Runtime
    precision: Precision
    mode: CpuMode = cpu_mode.STOCK
    ms: Mapping[str, float] = field(default_factory=dict)
    problems: tuple[str, ...] = ()

    def __str__(self) -> str:
        name = f"{NAMES[self.runtime]}, {self.precision}"
        if self.runtime == "torch" and self.mode.endswith("channels_last"):
            name += ", channels last"
        if self.ms:
            name += f" (measured, ms per patch: {', '.join(f'{key} {ms:.1f}' for key, ms in self.ms.items())})"
        return name


def use_runtime(
    predictor: nnUNetPredictor,
    checkpoints: Sequence[Path],
    choice: RuntimeChoice = "measure",
    precision: Precision = "f32",
) -> ChosenRuntime:
    """Let an initialized predictor on a CPU compute in another runtime. A predictor on another device is left
    unchanged. Files, patches and mirroring stay the same.

    Args:
        predictor: with one set of weights per checkpoint.
        checkpoints: the files of these weights, in the same order; converted networks are cached under their hashes.
        choice: a runtime, or ``measure`` for the fastest of those that are installed.
        precision: of the computation.

    Raises:
        KDError: if the runtime is not installed, or cannot convert the network.
    """
    check_runtime(choice, precision, predictor.device.type)
    if predictor.device.type != "cpu":
        return ChosenRuntime("torch", precision)
    if precision == "bf16":
        cpu_mode.check_here("bfloat16")
    threads = prediction_threads()
    with torch_threads(threads):
        if choice == "measure":
            chosen = _fastest(predictor, checkpoints, precision, threads)
        else:
            chosen = ChosenRuntime(
                choice, precision, TORCH_MODES[precision][0] if choice == "torch" else cpu_mode.STOCK
            )
        if chosen.runtime == "torch":
            cpu_mode.set_mode(predictor.network, chosen.mode)
        else:
            files = [
                converted_network(predictor, number, file, chosen.runtime, precision)
                for number, file in enumerate(checkpoints)
            ]
            use_sessions(predictor, [open_session(file, chosen.runtime, precision, threads) for file in files])
    return chosen


def use_sessions(predictor: nnUNetPredictor, sessions: Sequence[Session]) -> None:
    """Let a predictor run these sessions, one per fold, instead of its network."""
    predictor.network = SessionNetwork(sessions)
    predictor.list_of_parameters = [SessionNetwork.weights_of(number) for number in range(len(sessions))]


def input_shape(predictor: nnUNetPredictor) -> tuple[int, ...]:
    """``(1, C, *S)`` of one patch."""
    plans, configuration = predictor.plans_manager, predictor.configuration_manager
    channels = determine_num_input_channels(plans, configuration, predictor.dataset_json)
    return (1, int(channels), *(int(size) for size in configuration.patch_size))


def converted_network(
    predictor: nnUNetPredictor, number: int, checkpoint: Path, runtime: Runtime, precision: Precision
) -> Path:
    """The network with the weights of one fold as a runtime's file, from the cache if it was converted before.

    Raises:
        KDError: if it cannot be converted, or the converted network computes something else.
    """
    fold = fold_name(checkpoint.parent)
    key = {
        "what": "int8" if precision == "int8" else "network",
        "runtime": runtime,
        "checkpoint": sha256(checkpoint),
        "fold": fold,
        "shape": input_shape(predictor),
        "architecture": predictor.configuration_manager.configuration["architecture"],
        "versions": _versions(runtime),
    }
    file = OPENVINO_FILE if runtime == "openvino" else ONNX_FILE
    return get_or_make(key, lambda folder: convert(predictor, number, fold, runtime, precision, folder)) / file


def convert(
    predictor: nnUNetPredictor,
    number: int,
    fold: str,
    runtime: Runtime,
    precision: Precision,
    folder: Path,
    fp16: bool = False,
    check: bool = True,
) -> Path:
    """Write the network with the weights of one fold into a folder, as a runtime's file.

    Args:
        number: index of the fold's weights in ``predictor.list_of_parameters``.
        fold: its name.
        fp16: store the weights in half precision; only for OpenVINO.
        check: whether to compare it with PyTorch on a patch of noise.
    """
    network = copy.deepcopy(plain_network(predictor.network))
    network.load_state_dict(predictor.list_of_parameters[number])
    network.to("cpu").eval()
    shape = input_shape(predictor)
    file = write_onnx(network, shape, folder)
    if runtime == "openvino":
        onnx_file = file
        if precision == "int8":
            if check:
                check_conversion(network, shape, onnx_file, runtime)
            file = write_int8(onnx_file, calibration_patches(predictor, shape, fold), folder)
        else:
            file = write_openvino(onnx_file, folder, fp16)
        onnx_file.unlink()
    if check and precision != "int8" and not fp16:
        check_conversion(network, shape, file, runtime)
    return file


def check_conversion(network: nn.Module, shape: Sequence[int], file: Path, runtime: Runtime) -> None:
    """Check that in float32 the converted network computes the same as the original.

    Raises:
        KDError: if it does not.
    """
    data = torch.from_numpy(np.random.default_rng(0).standard_normal(tuple(shape), dtype=np.float32))
    with torch.inference_mode():
        expected = network(data).numpy()
    found = open_session(file, runtime, "f32", torch.get_num_threads())(data.numpy())
    error, largest = float(np.abs(found - expected).max()), float(np.abs(expected).max())
    if not error <= ROUNDING * largest:
        raise KDError(
            f"{type(network).__name__} computes something else in {NAMES[runtime]} than in PyTorch: logits differ by "
            f"{error:.3g}, the largest is {largest:.3g}. It is not used. Predict in PyTorch: --runtime torch. Export "
            "for nnU-Net: --format nnunet"
        )


def _versions(runtime: Runtime) -> dict[str, str | None]:
    packages = {"torch", "nncf", *PACKAGES[runtime]}
    return {"nnunetv2_kd": __version__} | {package: package_version(package) for package in sorted(packages)}


def _fastest(
    predictor: nnUNetPredictor, checkpoints: Sequence[Path], precision: Precision, threads: int
) -> ChosenRuntime:
    """The fastest runtime; measured once per model, machine, number of threads and versions, then cached."""
    runtimes = runtimes_for(precision)
    candidates = [
        (r, mode) for r in runtimes for mode in (TORCH_MODES[precision] if r == "torch" else (cpu_mode.STOCK,))
    ]
    if len(candidates) == 1:
        return ChosenRuntime(*_runtime_of(candidates[0], precision))
    key = {
        "what": "measured",
        "checkpoint": sha256(checkpoints[0]),
        "shape": input_shape(predictor),
        "architecture": predictor.configuration_manager.configuration["architecture"],
        "precision": precision,
        "threads": threads,
        "processor": device_name(torch.device("cpu")),
        "versions": {r: _versions(r) for r in runtimes},
    }

    def measure(folder: Path) -> None:
        ms, problems = _measure(predictor, checkpoints, candidates, precision, threads)
        found = {"ms": [[*candidate, milliseconds] for candidate, milliseconds in ms.items()], "problems": problems}
        (folder / "measured.json").write_text(json.dumps(found))

    known = json.loads((get_or_make(key, measure) / "measured.json").read_text())
    ms = {(runtime, mode): milliseconds for runtime, mode, milliseconds in known["ms"]}
    if not ms:
        raise KDError(listing("The network runs in none of the runtimes that are installed:", known["problems"]))
    best = min(ms, key=lambda candidate: ms[candidate])
    shown = {_label(candidate): milliseconds for candidate, milliseconds in ms.items()}
    return ChosenRuntime(*_runtime_of(best, precision), shown, tuple(known["problems"]))


Candidate = tuple[Runtime, CpuMode]


def _runtime_of(candidate: Candidate, precision: Precision) -> tuple[Runtime, Precision, CpuMode]:
    return candidate[0], precision, candidate[1]


def _label(candidate: Candidate) -> str:
    runtime, mode = candidate
    return NAMES[runtime] + (" channels last" if mode.endswith("channels_last") else "")


def _measure(
    predictor: nnUNetPredictor,
    checkpoints: Sequence[Path],
    candidates: Sequence[Candidate],
    precision: Precision,
    threads: int,
) -> tuple[dict[Candidate, float], list[str]]:
    """Milliseconds per patch, and why a runtime could not be measured."""
    runs: dict[Candidate, Callable[[], Any]] = {}
    problems = []
    data = torch.from_numpy(np.random.default_rng(0).standard_normal(input_shape(predictor), dtype=np.float32))
    for candidate in candidates:
        runtime, mode = candidate
        if runtime == "torch":
            network = copy.deepcopy(plain_network(predictor.network)).eval()
            cpu_mode.set_mode(network, mode)
            runs[candidate] = partial(network, data)
            continue
        try:
            file = converted_network(predictor, 0, checkpoints[0], runtime, precision)
            session = open_session(file, runtime, precision, threads)
        except KDError as error:
            problems.append(f"{NAMES[runtime]} is left out: {error}")
            continue
        runs[candidate] = partial(session, data.numpy())
    return time_in_turns(runs), problems


def time_in_turns(runs: Mapping[Any, Callable[[], Any]], rounds: int = ROUNDS) -> dict[Any, float]:
    """The fastest of a few runs of each, in milliseconds. They take turns, so that other load on the machine affects
    all of them equally. The first round is a warm-up; it counts only if there was no time for a second one."""
    took: dict[Any, list[float]] = {name: [] for name in runs}
    clock, started = stopwatch(prediction_threads()), time.perf_counter()
    for _ in range(rounds):
        for name, run in runs.items():
            before = clock()
            with torch.inference_mode():
                run()
            took[name].append(1000 * (clock() - before))
        if time.perf_counter() - started > SECONDS:
            break
    return {name: min(times[1:] or times) for name, times in took.items()}
