"""What each model costs: parameters, FLOPs, file size, and milliseconds and memory per case on this machine."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from nnunetv2_kd.benchmark.timing import TimedModel, peak_in_own_process, time_in_turns
from nnunetv2_kd.networks.cost import network_cost
from nnunetv2_kd.nnunet.trained_models import TrainedModel


@dataclass(frozen=True)
class ModelCost:
    """What is known about one model's cost.

    Attributes:
        params: parameters of the network that the plans describe.
        gflops: 10^9 floating-point operations of one forward pass of one patch, a multiply-add counted as two.
        file_mib: size of one fold's checkpoint_final.pth (weights and optimizer) in MiB.
        ms: median milliseconds per case from image to segmentation, as stock nnU-Net predicts.
        peak_mib: peak memory of such a prediction in MiB: CUDA memory allocated, or on a CPU the whole process.
        problem: why a value is missing.
    """

    params: int | None = None
    gflops: float | None = None
    file_mib: float | None = None
    ms: float | None = None
    peak_mib: float | None = None
    problem: str = ""


def model_size(model: TrainedModel) -> ModelCost:
    """What is known without running anything."""
    sizes = [fold.checkpoint.stat().st_size for fold in model.trained_folds]
    file_mib = max(sizes) / 2**20 if sizes else None
    try:
        cost = network_cost(model.plans, model.configuration, model.dataset_json, model.trainer)
    except Exception as error:  # the plans' architecture may not be installed, or not run on torch's meta device
        problem = f"parameters and FLOPs not known: {type(error).__name__}: {error}"
        return ModelCost(file_mib=file_mib, problem=problem)
    return ModelCost(params=cost.params, gflops=cost.flops / 1e9, file_mib=file_mib)


def measure_costs(
    timed: Sequence[TimedModel], costs: Mapping[str, ModelCost], cases: list[list[str]], device: torch.device
) -> dict[str, ModelCost]:
    """The costs, with `ModelCost.ms` and `ModelCost.peak_mib` of the timed models added; see `timing.time_in_turns`.

    Args:
        timed: the models to time, filled in; cascades are left out.
        costs: by model name, for at least these models.
        cases: the channel files of each case; at least one case.
        device: to predict on.
    """
    time_in_turns(timed, cases, device)
    return {**costs, **{t.model.name: _with_time(costs[t.model.name], t, cases[0], device) for t in timed}}


def _with_time(cost: ModelCost, timed: TimedModel, files: list[str], device: torch.device) -> ModelCost:
    cost = replace(cost, ms=timed.ms(), peak_mib=timed.peak_mib, problem=timed.problem or cost.problem)
    if device.type != "cpu" or timed.problem:
        return cost
    try:
        memory = peak_in_own_process(timed, files)
    except Exception as error:  # the process may have been killed for its memory
        return replace(cost, problem=f"peak memory not known: {type(error).__name__}: {error}")
    return replace(cost, peak_mib=memory[0] if memory else None)
