"""The device that something runs on: whether it is there, and its name."""

import time
from collections.abc import Callable
from pathlib import Path

import torch
from nnunetv2.configuration import default_num_processes

from nnunetv2_kd.errors import KDError
from nnunetv2_kd.networks.cpu_mode import processor_name
from nnunetv2_kd.networks.devices import is_there
from nnunetv2_kd.networks.threads import allowed_threads


def check_device(device: torch.device) -> None:
    """The device is there.

    Raises:
        KDError: where it is not; with what to type.
    """
    if not is_there(device):
        raise KDError(f"There is no device {device.type} here. Add: -device cpu")


def device_name(device: torch.device) -> str:
    """``NVIDIA H200``, or the processor with the threads that nnU-Net's predictor takes of it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return device.type
    threads = prediction_threads()
    return f"{processor_name()} ({threads} thread{'' if threads == 1 else 's'})"


def prediction_threads() -> int:
    """nnU-Net's predictor takes no more than ``nnUNet_def_n_proc``, and none takes more than are allowed."""
    return min(default_num_processes, torch.get_num_threads(), allowed_threads())


def stopwatch(threads: int) -> Callable[[], float]:
    """A clock in seconds. With one thread processor time, which is what an idle machine would take, whatever else this
    one does; with several what passes."""
    return time.process_time if threads == 1 else time.perf_counter


def process_memory(key: str) -> float | None:
    """MiB of this process on a CPU: ``VmRSS`` now, ``VmHWM`` at its peak. None where the system does not tell."""
    try:  # not getrusage: on Linux its peak is inherited from the process that started this one
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(key)), None)
