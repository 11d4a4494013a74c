"""What to compare: the flags of ``nnUNetv2_kd leaderboard``, checked against each other."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from nnunetv2_kd.choices import Precision, RuntimeChoice
from nnunetv2_kd.errors import KDError
from nnunetv2_kd.inference.device import check_device
from nnunetv2_kd.inference.runtimes import check_runtime, combinations
from nnunetv2_kd.networks import cpu_mode

Say = Callable[[str], None]


@dataclass(frozen=True)
class RunsIn:
    """A runtime and its precision on a CPU. No runtime: as in stock nnU-Net."""

    runtime: RuntimeChoice | None = None
    precision: Precision = "f32"

    def __str__(self) -> str:
        return f"{self.runtime} {self.precision}" if self.runtime is not None else ""


STOCK = RunsIn()


@dataclass(frozen=True)
class LeaderboardRequest:
    """The flags. ``timed``: how many cases to time every model on. ``runtimes``, ``precisions``: what models run in for
    timing and for ``images``, one row each; none: as in stock nnU-Net. ``every_seed``: a row for each training, instead
    of one for all trainings that differ only in their seed."""

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
    runtimes: Sequence[RuntimeChoice] = ()
    precisions: Sequence[Precision] = ("f32",)
    every_seed: bool = False

    def runs_in(self) -> list[RunsIn]:
        """What every model runs in, one row each.

        Raises:
            KDError: if runtimes and precisions do not fit together.
        """
        return [RunsIn(*pair) for pair in combinations(self.runtimes, self.precisions)] or [STOCK]


def check_request(request: LeaderboardRequest) -> None:
    """Check that the flags fit together and fit this machine.

    Raises:
        KDError: if they do not; says what to type.
    """
    if (request.images is None) != (request.truths is None):
        given, lacking = ("-i", "-gt LABELS") if request.truths is None else ("-gt", "-i IMAGES")
        raise KDError(f"{given} also needs {lacking}: predictions are compared with ground truth.")
    if request.images is not None and request.output is None:
        raise KDError("-i needs a folder for the predictions: add -o FOLDER.")
    if request.images is not None and len(request.datasets) > 1:
        raise KDError(f"-i is for one dataset, but -d names {len(request.datasets)}. Run the command once for each.")
    if not request.tolerance > 0:
        raise KDError(f"--tolerance must be greater than 0 mm, found {request.tolerance:g}.")
    if request.timed < 0:
        raise KDError(f"--time must be 0 or a number of cases, found {request.timed}.")
    if request.processes < 1:
        raise KDError(f"-np must be at least 1, found {request.processes}.")
    if request.images is not None or request.timed:
        check_device(request.device)
    if request.runtimes and request.images is None and not request.timed:
        raise KDError("--runtime only applies to -i IMAGES and --time N. Add one of them.")
    if not request.runtimes and tuple(request.precisions) != ("f32",):
        raise KDError(f"--precision {' '.join(request.precisions)} only applies to --runtime. Add: --runtime openvino")
    rows = request.runs_in()
    for row in rows:
        if row.runtime is not None:
            check_runtime(row.runtime, row.precision, request.device.type)
        if row.precision == "bf16":
            cpu_mode.check_here("bfloat16")
    if request.images is None and all(row.precision != "f32" for row in rows):
        raise KDError(
            f"nnU-Net's validation was predicted in f32 and says nothing about {' and '.join(map(str, rows))}. Predict "
            "with it: -i IMAGES -gt LABELS -o FOLDER. Or time it beside f32: --precision f32 "
            + " ".join(request.precisions)
        )
