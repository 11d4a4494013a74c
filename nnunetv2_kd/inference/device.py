"""The device to run on: whether it exists, and its name."""

import time
from collections.abc import Callable
from pathlib import Path

import torch
from nnunetv2.configuration import default_num_processes

from nnunetv2_kd.errors import KDError
from nnunetv2_kd.networks.cpu_mode import processor_name
from nnunetv2_kd.networks.devices import is_available
from nnunetv2_kd.networks.threads import allowed_threads


def check_device(device: torch.device) -> None:
    """Check that the device exists.

    Raises:
        KDError: if it does not; says what to type.
    """
    if not is_available(device):
        raise KDError(f"This machine has no device {device.type}. Add: -device cpu")


def device_name(device: torch.device) -> str:
    """A GPU's name, such as ``NVIDIA H200``; or the processor's, with the threads that nnU-Net's predictor uses."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return device.type
    threads = prediction_threads()
    return f"{processor_name()} ({threads} thread{'' if threads == 1 else 's'})"


def prediction_threads() -> int:
    """The threads that nnU-Net's predictor uses: at most ``nnUNet_def_n_proc``, and at most those allowed."""
    return min(default_num_processes, torch.get_num_threads(), allowed_threads())


def stopwatch(threads: int) -> Callable[[], float]:
    """A clock in seconds. With one thread it counts processor time, as on an idle machine, whatever else runs; with
    several threads, elapsed time."""
    return time.process_time if threads == 1 else time.perf_counter


def process_memory(key: str) -> float | None:
    """Memory of this process in MiB: ``VmRSS`` now, ``VmHWM`` at its peak. None if the system does not report it."""
    try:  # not getrusage: on Linux its peak is inherited from the process that started this one
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(key)), None)
