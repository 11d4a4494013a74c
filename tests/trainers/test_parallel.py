"""DDP, simulated with two gloo processes on the CPU."""

import sys
from pathlib import Path

import pytest
import torch
from nnunetv2.run.run_training import find_free_network_port

from tests.conftest import DATASET

pytestmark = pytest.mark.commands


def test_two_processes_train_one_student(world):
    world.env["PYTHONPATH"] = str(Path(__file__).parents[2])
    done = world.run(sys.executable, "-m", "tests.trainers.ddp_worker", world.root, str(find_free_network_port()))
    first, second = (torch.load(world.root / f"rank{rank}.pt") for rank in (0, 1))
    assert torch.equal(first["weights"], second["weights"])
    assert torch.equal(first["adapters"], second["adapters"])
    assert (first["rows"], second["rows"]) == (2, 0)  # only the first writes
    folder = world.results / DATASET / "OnCPU__nnUNetPlans__3d_fullres" / "fold_0"
    assert (folder / "checkpoint_final.pth").is_file()
    assert done.stdout.count("distillation: voxel_kl") == 2
    keys = torch.load(folder / "checkpoint_final.pth", weights_only=False)["network_weights"]
    assert not any(key.startswith("module.") for key in keys)


def test_two_processes_train_from_one_store(stored_world):
    world = stored_world
    world.env["PYTHONPATH"] = str(Path(__file__).parents[2])
    world.run(sys.executable, "-m", "tests.trainers.ddp_worker", world.root, str(find_free_network_port()), "fold_0")
    first, second = (torch.load(world.root / f"rank{rank}.pt") for rank in (0, 1))
    assert torch.equal(first["weights"], second["weights"])
