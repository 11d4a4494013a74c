"""How many threads this process may use.

On a CPU, nnU-Net calls ``torch.set_num_threads(cpu_count())``: every core of the machine, however few the job was
given. Two such processes on two cores wait for each other most of the time.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

CGROUPS = Path("/sys/fs/cgroup")
JOB_VARIABLES = ("SLURM_CPUS_PER_TASK", "NSLOTS", "PBS_NUM_PPN")  # SLURM, Grid Engine, PBS


def allowed_threads() -> int:
    """The smallest of this process's limits: the machine's cores, its affinity (``taskset``), its cgroup's quota
    (containers), ``OMP_NUM_THREADS``, and the threads that a cluster gave to the job. At least 1."""
    limits = [os.cpu_count() or 1, _affinity(), _cgroup_quota()]
    limits += [_number(os.environ.get(name, "")) for name in ("OMP_NUM_THREADS", *JOB_VARIABLES)]
    return max(1, min(limit for limit in limits if limit is not None))


def limit_threads(device: torch.device | None = None) -> int:
    """Limit torch to the allowed number of threads, in this process and in those that it starts.

    Args:
        device: where the network runs. Unless it is a CPU, torch's threads stay as nnU-Net sets them.

    Returns:
        The number of threads that torch now uses.
    """
    if device is None or device.type == "cpu":
        allowed = allowed_threads()
        torch.set_num_threads(min(torch.get_num_threads(), allowed))
        # nnU-Net's processes that resample and export use this many threads each
        os.environ.setdefault("nnUNet_def_n_proc", str(allowed))
    return torch.get_num_threads()


@contextmanager
def torch_threads(number: int) -> Iterator[None]:
    """Within this context, torch uses this many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _number(text: str) -> int | None:
    """The first number of a text such as ``4`` or ``4,2``; None if there is none."""
    first = text.split(",")[0].strip()
    return int(first) if first.isdigit() and int(first) > 0 else None


def _affinity() -> int | None:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None


def _cgroup_quota() -> int | None:
    """Whole cores of the tightest CPU quota in cgroups version 2 or 1; None if there is no quota."""
    found = [quota for folder in _cgroup_folders() if (quota := _quota_of(folder)) is not None]
    return max(1, int(min(found))) if found else None


def _cgroup_folders() -> list[Path]:
    """This process's cgroups and their parents."""
    folders = [CGROUPS, CGROUPS / "cpu"]
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return folders
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "cpu", "cpu,cpuacct"):
            group = (CGROUPS / controllers / path.lstrip("/")) if controllers else CGROUPS / path.lstrip("/")
            folders += [group, *(parent for parent in group.parents if CGROUPS in parent.parents)]
    return folders


def _quota_of(folder: Path) -> float | None:
    """Cores according to ``cpu.max`` (version 2: quota and period) or ``cpu.cfs_quota_us`` (version 1)."""
    try:
        if (folder / "cpu.max").is_file():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota, period = ((folder / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
    except (OSError, ValueError):
        return None
    return int(quota) / int(period) if quota.isdigit() and int(quota) > 0 else None
