"""Time and memory of trained models on real cases, from image to segmentation, in nnU-Net's predictor."""

import contextlib
import io
import multiprocessing
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch
from tqdm import tqdm

from nnunetv2_kd.choices import Precision, RuntimeChoice
from nnunetv2_kd.errors import KDError
from nnunetv2_kd.inference.choose import ChosenRuntime, use_runtime
from nnunetv2_kd.inference.device import process_memory
from nnunetv2_kd.inference.predict import set_cpu_speed
from nnunetv2_kd.inference.predictor import fast_predictor_of, predictor_of
from nnunetv2_kd.inference.runtimes import NAMES
from nnunetv2_kd.networks import cpu_mode
from nnunetv2_kd.nnunet.images import reader_of
from nnunetv2_kd.nnunet.trained_models import TrainedModel


@dataclass
class TimedModel:
    """One model to time, and the results.

    Attributes:
        model: only its first fold is timed.
        cpu_speed: the mode in which stock nnU-Net's predictor should compute on a CPU.
        runtime, precision: instead, what to run in with the predictor of ``nnUNetv2_kd predict``; None: stock.
        mirroring: predict with nnU-Net's mirroring, without, or both.
        mode: how it computed on a CPU.
        chosen: the runtime that was chosen, if several were measured.
        milliseconds: with and without mirroring, the milliseconds of all repeats, per case.
        peak_mib: on CUDA, peak memory allocated in MiB.
        problem: why it was not timed; "" if it was.
    """

    model: TrainedModel
    cpu_speed: cpu_mode.CpuSpeed = cpu_mode.STOCK
    runtime: RuntimeChoice | None = None
    precision: Precision = "f32"
    mirroring: tuple[bool, ...] = (True,)
    mode: cpu_mode.CpuMode = cpu_mode.STOCK
    chosen: str = ""
    milliseconds: dict[bool, list[list[float]]] = field(default_factory=dict)
    peak_mib: float | None = None
    problem: str = ""

    @property
    def computes_in(self) -> str:
        """What the model computes in, in words for a table."""
        if self.runtime is None:
            return self.mode
        return f"{self.runtime} {self.precision}" + (f": {self.chosen}" if self.chosen else "")

    def ms(self, mirroring: bool = True) -> float | None:
        """Median over the cases of each case's fastest repeat."""
        repeats = self.milliseconds.get(mirroring)
        return median(min(times) for times in repeats) if repeats and not self.problem else None


def time_in_turns(models: Sequence[TimedModel], cases: list[list[str]], device: torch.device, repeats: int = 1) -> None:
    """Time models. They take turns on every case, so that other load on the machine affects all alike.

    Args:
        models: filled in; cascades get a problem.
        cases: the channel files of each case; at least one case.
        device: to predict on.
        repeats: how often each case is predicted.
    """
    predictors: dict[int, Any] = {}

    def failed(number: int, error: Exception) -> None:  # nnU-Net may raise anything; go on with the other models
        reason = str(error) if isinstance(error, KDError) else f"{type(error).__name__}: {error}"
        models[number].problem = f"not timed: {reason}"
        models[number].peak_mib = None
        predictors.pop(number, None)

    for number, timed in enumerate(models):
        timed.milliseconds = {mirroring: [[] for _ in cases] for mirroring in timed.mirroring}
        try:
            predictors[number], ran_in = load_first_fold(timed.model, device, timed.runtime, timed.precision)
            if timed.runtime is None:
                chosen = set_cpu_speed(predictors[number], timed.cpu_speed)
                timed.mode = cpu_mode.STOCK if chosen is None else chosen.mode
            if timed.runtime == "measure" and ran_in is not None:
                timed.chosen = NAMES[ran_in.runtime]
        except Exception as error:
            failed(number, error)
    turns: list[tuple[int | None, list[str]]] = [(None, cases[0])]  # warm-up
    turns += [(index, files) for index, files in enumerate(cases) for _ in range(repeats)]
    with tqdm(total=len(turns) * len(predictors), desc="timing", unit="prediction", leave=False, disable=None) as bar:
        for index, files in turns:
            for number, predictor in list(predictors.items()):
                try:
                    _time_one_turn(models[number], predictor, files, index, device)
                except Exception as error:
                    failed(number, error)
                bar.update()


def _time_one_turn(
    timed: TimedModel, predictor: Any, files: list[str], index: int | None, device: torch.device
) -> None:
    image, properties = _image(predictor, files)
    predictor.network.to(device)
    for mirroring in timed.mirroring:
        predictor.use_mirroring = mirroring
        milliseconds, peak = _time(predictor, image, properties, device)
        if index is not None:
            timed.milliseconds[mirroring][index].append(milliseconds)
        if peak is not None:
            timed.peak_mib = max(peak, timed.peak_mib or 0.0)
    predictor.network.to("cpu")  # so that its memory does not count for the next model


def load_first_fold(
    model: TrainedModel, device: torch.device, runtime: RuntimeChoice | None = None, precision: Precision = "f32"
) -> tuple[Any, ChosenRuntime | None]:
    """nnU-Net's predictor with the first fold of a model; or, with a runtime, the predictor of ``nnUNetv2_kd predict``
    and what it runs in."""
    if model.configuration.endswith("cascade_fullres"):
        raise ValueError("a cascade needs its previous stage")
    with contextlib.redirect_stdout(io.StringIO()):
        predictor = predictor_of(model, device) if runtime is None else fast_predictor_of(model, device)
    del predictor.list_of_parameters[1:]
    if runtime is None:
        return predictor, None
    return predictor, use_runtime(predictor, [model.predicting_folds[0].checkpoint], runtime, precision)


def _image(predictor: Any, files: list[str]) -> tuple[Any, dict]:
    return reader_of(predictor.plans_manager.plans, predictor.dataset_json)().read_images(files)


def _time(predictor: Any, image: Any, properties: dict, device: torch.device) -> tuple[float, float | None]:
    """Milliseconds of one case; on CUDA also its peak memory in MiB."""
    is_cuda = device.type == "cuda"
    if is_cuda:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    started = time.perf_counter()
    _predict(predictor, image, properties)
    if is_cuda:
        torch.cuda.synchronize(device)
    milliseconds = 1000 * (time.perf_counter() - started)
    return milliseconds, torch.cuda.max_memory_allocated(device) / 2**20 if is_cuda else None


def _predict(predictor: Any, image: Any, properties: dict) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        predictor.predict_single_npy_array(image, properties)


def peak_in_own_process(timed: TimedModel, files: list[str]) -> tuple[float, float] | None:
    """On a CPU, the peak memory in MiB of a process that predicts one case, and its memory before it loaded the model
    (Python, torch and nnU-Net). A process's peak never falls, so every model gets a process of its own. None if the
    system does not report memory."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_peak_of_one_case, timed, files, torch.get_num_threads()).result()


def _peak_of_one_case(timed: TimedModel, files: list[str], threads: int) -> tuple[float, float] | None:
    torch.set_num_threads(threads)
    before = process_memory("VmRSS")
    predictor, _ = load_first_fold(timed.model, torch.device("cpu"), timed.runtime, timed.precision)
    if timed.runtime is None:
        cpu_mode.set_mode(predictor.network, timed.mode)
    _predict(predictor, *_image(predictor, files))
    peak = process_memory("VmHWM")
    return (peak, before) if peak is not None and before is not None else None
