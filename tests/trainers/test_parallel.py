"""DDP, simulated with two gloo processes on the CPU."""

import sys
from pathlib import Path

import pytest
import torch
from nnunetv2.run.run_training import find_free_network_port

from tests.conftest import DATASET, LOG, copy_of, made_once, with_log

pytestmark = pytest.mark.commands


@pytest.fixture(scope="session")
def trained_together(stored_trained_world, tmp_path_factory):
    """A student of the teacher itself and one of the stored teacher, each trained by the two processes."""

    def make(root):
        world = copy_of(stored_trained_world, root)
        world.env["PYTHONPATH"] = str(Path(__file__).parents[2])
        port = str(find_free_network_port())
        done = world.run(sys.executable, "-m", "tests.trainers.ddp_worker", root, port, installed=True)
        (root / LOG).write_text(done.stdout)

    return with_log(made_once(tmp_path_factory, "trained_together", make))


def ranks(world, student):
    return (torch.load(world.root / f"{student}_rank{rank}.pt") for rank in (0, 1))


def test_two_processes_train_one_student(trained_together):
    world = trained_together
    first, second = ranks(world, "OnCPU")
    assert torch.equal(first["weights"], second["weights"])
    assert torch.equal(first["adapters"], second["adapters"])
    assert (first["rows"], second["rows"]) == (2, 0)  # only the first writes
    folder = world.results / DATASET / "OnCPU__nnUNetPlans__3d_fullres" / "fold_0"
    assert (folder / "checkpoint_final.pth").is_file()
    assert world.log.count("distillation: voxel_kl") == 4  # by two processes for two students
    keys = torch.load(folder / "checkpoint_final.pth", weights_only=False)["network_weights"]
    assert not any(key.startswith("module.") for key in keys)


def test_two_processes_train_from_one_store(trained_together):
    first, second = ranks(trained_together, "OnCPUStored")
    assert torch.equal(first["weights"], second["weights"])
