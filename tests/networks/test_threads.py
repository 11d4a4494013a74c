import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nnunetv2_kd.networks import threads


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """16 cores, all allowed, no quota, no variables."""
    for name in ("OMP_NUM_THREADS", "nnUNet_def_n_proc", *threads.JOB_VARIABLES):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    monkeypatch.setattr(threads, "CGROUPS", tmp_path)
    return tmp_path


def test_all_cores_where_nothing_limits(machine):
    assert threads.allowed_threads() == 16


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "SLURM_CPUS_PER_TASK", "NSLOTS", "PBS_NUM_PPN"])
@pytest.mark.parametrize(("value", "expected"), [("3", 3), ("4,2", 4), ("32", 16), ("0", 16), ("many", 16), ("", 16)])
def test_variables(machine, monkeypatch, name, value, expected):
    monkeypatch.setenv(name, value)
    assert threads.allowed_threads() == expected


def test_affinity(machine, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5}, raising=False)
    assert threads.allowed_threads() == 2


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "400000 100000"}, 4),
        ({"cpu.max": "150000 100000"}, 1),
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu.max": "max 100000"}, 16),
        ({"cpu.max": "nonsense"}, 16),
        ({"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, 3),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 16),
    ],
)
def test_quota_of_a_container(machine, files, expected):
    for name, content in files.items():
        (machine / name).parent.mkdir(exist_ok=True)
        (machine / name).write_text(content + "\n")
    assert threads.allowed_threads() == expected


def test_the_smallest_counts(machine, monkeypatch):
    (machine / "cpu.max").write_text("600000 100000\n")
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "5")
    assert threads.allowed_threads() == 5


def test_torch_takes_no_more(machine, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    torch.set_num_threads(2)
    assert threads.limit_threads(torch.device("cuda")) == 2
    assert "nnUNet_def_n_proc" not in os.environ
    assert threads.limit_threads(torch.device("cpu")) == torch.get_num_threads() == 1
    assert ("nnUNet_def_n_proc", "1") in os.environ.items()
    monkeypatch.delenv("nnUNet_def_n_proc")


def test_a_stock_command_takes_no_more(tmp_path):
    """Run in the same way as the workflow runs nnUNetv2_train."""
    command = tmp_path / "command.py"
    command.write_text(
        "import multiprocessing, sys\n"
        "if __name__ == '__main__':\n"
        "    print(multiprocessing.cpu_count(), *sys.argv[1:])\n"
    )
    script = Path(__file__).parents[2] / "workflow" / "within_threads.py"
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, script, command, "4", "--c"], env=env, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["1", "4", "--c"]
