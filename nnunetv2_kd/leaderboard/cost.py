"""What each model costs: parameters, FLOPs, file size, and on this machine milliseconds and memory per case."""

import contextlib
import io
import multiprocessing
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from nnunetv2_kd.leaderboard.models import Model
from nnunetv2_kd.leaderboard.predict import predictor_of
from nnunetv2_kd.leaderboard.scores import reader_of
from nnunetv2_kd.students import network_cost


@dataclass
class ModelCost:
    """Of one model, whatever is known.

    Attributes:
        params: parameters of the network that the plans describe.
        gflops: 10^9 floating-point operations of one forward pass of one patch, a multiply-add counted as two.
        file_mib: size of one fold's checkpoint_final.pth (weights and optimizer) in MiB.
        ms: median milliseconds from image to segmentation of one case, as stock nnU-Net predicts.
        peak_mib: peak memory of that in MiB: CUDA memory allocated; on a CPU the whole process.
        problem: why something is missing.
    """

    params: int | None = None
    gflops: float | None = None
    file_mib: float | None = None
    ms: float | None = None
    peak_mib: float | None = None
    problem: str = ""


def size_of(model: Model) -> ModelCost:
    """What can be told without running anything."""
    found = ModelCost()
    sizes = [fold.checkpoint.stat().st_size for fold in model.trained_folds]
    if sizes:
        found.file_mib = max(sizes) / 2**20
    try:
        cost = network_cost(model.plans, model.configuration, model.dataset_json)
    except Exception as error:  # an architecture that the plans name may be missing here, or refuse torch's meta device
        found.problem = f"parameters and FLOPs not known: {type(error).__name__}: {error}"
        return found
    found.params, found.gflops = cost.params, cost.flops / 1e9
    return found


def measure(models: Sequence[Model], costs: dict[str, ModelCost], cases: list[list[str]], device: torch.device) -> None:
    """Fill in `ModelCost.ms` and `ModelCost.peak_mib`. The models take turns on every case, so that what else the
    machine does weighs on all alike. Only the first fold of each model is run.

    Args:
        models: to be timed; cascades are left out.
        costs: by the models' names; filled in.
        cases: the files of the channels of each case; at least one.
        device: to predict on.
    """
    predictors: dict[str, Any] = {}
    took: dict[str, list[float]] = {model.name: [] for model in models}

    def failed(name: str, error: Exception) -> None:  # nnU-Net's, of any kind; the other models go on
        costs[name].problem = f"not timed: {type(error).__name__}: {error}"
        costs[name].peak_mib = None
        predictors.pop(name, None)

    for model in models:
        try:
            predictors[model.name] = _one_fold(model, device)
        except Exception as error:
            failed(model.name, error)
    for turn, files in enumerate([cases[0], *cases]):  # the first is for warming up
        for name, predictor in list(predictors.items()):
            try:
                milliseconds, peak = _run(predictor, files, device)
            except Exception as error:
                failed(name, error)
                continue
            if turn > 0:
                took[name].append(milliseconds)
            if peak is not None:
                costs[name].peak_mib = max(peak, costs[name].peak_mib or 0.0)
    for model in models:
        if model.name in predictors:
            costs[model.name].ms = median(took[model.name])
            if device.type == "cpu":
                try:
                    costs[model.name].peak_mib = _peak_in_own_process(model, cases[0])
                except Exception as error:  # the process may have been killed for its memory
                    costs[model.name].problem = f"peak memory not known: {type(error).__name__}: {error}"


def _one_fold(model: Model, device: torch.device) -> Any:
    if model.configuration.endswith("cascade_fullres"):
        raise ValueError("a cascade needs its previous stage")
    with contextlib.redirect_stdout(io.StringIO()):
        predictor = predictor_of(model, device)
    del predictor.list_of_parameters[1:]
    return predictor


def _image(predictor: Any, files: list[str]) -> tuple[Any, dict]:
    return reader_of(predictor.dataset_json)().read_images(files)


def _run(predictor: Any, files: list[str], device: torch.device) -> tuple[float, float | None]:
    """Milliseconds of one case, and on CUDA its peak memory in MiB."""
    image, properties = _image(predictor, files)
    is_cuda = device.type == "cuda"
    predictor.network.to(device)
    if is_cuda:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    started = time.perf_counter()
    _predict(predictor, image, properties)
    if is_cuda:
        torch.cuda.synchronize(device)
    milliseconds = 1000 * (time.perf_counter() - started)
    peak = torch.cuda.max_memory_allocated(device) / 2**20 if is_cuda else None
    predictor.network.to("cpu")  # so that it does not count for the model whose turn is next
    return milliseconds, peak


def _predict(predictor: Any, image: Any, properties: dict) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        predictor.predict_single_npy_array(image, properties)


def _peak_in_own_process(model: Model, files: list[str]) -> float | None:
    """A process's peak never falls, so every model needs one of its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_peak_of_one_case, model, files, torch.get_num_threads()).result()


def _peak_of_one_case(model: Model, files: list[str], threads: int) -> float | None:
    torch.set_num_threads(threads)
    predictor = _one_fold(model, torch.device("cpu"))
    _predict(predictor, *_image(predictor, files))
    try:  # not getrusage: on Linux its peak is inherited from the process that started this one
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), None)
