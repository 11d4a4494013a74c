"""What each model costs: parameters, FLOPs, file size, and on this machine milliseconds and memory per case."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from nnunetv2_kd.benchmark.timing import Timed, peak_in_own_process, take_turns
from nnunetv2_kd.networks.cost import network_cost
from nnunetv2_kd.nnunet.trained_models import TrainedModel


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


def size_of(model: TrainedModel) -> ModelCost:
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


def measure(
    models: Sequence[TrainedModel], costs: dict[str, ModelCost], cases: list[list[str]], device: torch.device
) -> None:
    """Fill in `ModelCost.ms` and `ModelCost.peak_mib`; see `timing.take_turns`.

    Args:
        models: to be timed; cascades are left out.
        costs: by the models' names; filled in.
        cases: the files of the channels of each case; at least one.
        device: to predict on.
    """
    runs = [Timed(model) for model in models]
    take_turns(runs, cases, device)
    for run in runs:
        cost = costs[run.model.name]
        cost.ms, cost.peak_mib, cost.problem = run.ms(), run.peak_mib, run.problem or cost.problem
        if device.type == "cpu" and not run.problem:
            try:
                found = peak_in_own_process(run, cases[0])
            except Exception as error:  # the process may have been killed for its memory
                cost.problem = f"peak memory not known: {type(error).__name__}: {error}"
            else:
                cost.peak_mib = found[0] if found else None
