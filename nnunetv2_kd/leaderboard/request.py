"""What to compare: the flags of ``nnUNetv2_kd leaderboard``, checked against each other."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from nnunetv2_kd.choices import Precision, RuntimeChoice
from nnunetv2_kd.errors import KDError
from nnunetv2_kd.inference.device import check_device
from nnunetv2_kd.inference.runtimes import check_runtime

Say = Callable[[str], None]


@dataclass(frozen=True)
class LeaderboardRequest:
    """The flags. ``timed``: how many cases to time every model on. ``runtime``: what models run in for that and for
    ``images``; None: as in stock nnU-Net."""

    datasets: Sequence[str]
    device: torch.device
    configurations: list[str] | None = None
    folds: list[str] | None = None
    output: Path | None = None
    images: Path | None = None
    truths: Path | None = None
    reference: str | None = None
    teacher: str | None = None
    tolerance: float = 1.0
    timed: int = 0
    processes: int = 1
    runtime: RuntimeChoice | None = None
    precision: Precision = "f32"


def check_request(request: LeaderboardRequest) -> None:
    """The flags fit each other and this machine.

    Raises:
        KDError: where they do not; with what to type.
    """
    if (request.images is None) != (request.truths is None):
        given, lacking = ("-i", "-gt LABELS") if request.truths is None else ("-gt", "-i IMAGES")
        raise KDError(f"{given} is given alone. Predictions are compared with ground truth: add {lacking}.")
    if request.images is not None and request.output is None:
        raise KDError("-i needs a folder to keep the predictions in: add -o FOLDER.")
    if request.images is not None and len(request.datasets) > 1:
        raise KDError(f"-i is of one dataset, -d names {len(request.datasets)}. Run the command once per dataset.")
    if not request.tolerance > 0:
        raise KDError(f"--tolerance must be greater than 0 mm, found {request.tolerance:g}.")
    if request.timed < 0:
        raise KDError(f"--time must be 0 or a number of cases, found {request.timed}.")
    if request.processes < 1:
        raise KDError(f"-np must be at least 1, found {request.processes}.")
    if request.images is not None or request.timed:
        check_device(request.device)
    if request.runtime is not None:
        if request.images is None and not request.timed:
            raise KDError("--runtime is what models run in for -i IMAGES and --time N. Add one of them.")
        check_runtime(request.runtime, request.precision, request.device.type)
