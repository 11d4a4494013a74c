"""DDP, simulated with two gloo processes on the CPU."""

import json
import sys
from pathlib import Path

import pytest
import torch
from nnunetv2.run.run_training import find_free_network_port

from tests.conftest import DATASET, LOG, copy_of, made_once, with_log

pytestmark = pytest.mark.commands


@pytest.fixture(scope="session")
def trained_together(stored_trained_world, tmp_path_factory):
    """A student of the running teacher and one of the stored teacher, each trained by the two processes."""

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


@pytest.fixture
def patches(world):
    """Four patches with the targets of all heads, half of them for each of the two processes."""
    world.env["PYTHONPATH"] = str(Path(__file__).parents[2])
    generator = torch.Generator().manual_seed(0)
    size = torch.tensor([16, 24, 16])
    data = torch.randn(4, 1, *size, generator=generator)
    plans = json.loads(world.plans_file().read_text())["configurations"]["3d_fullres"]
    strides = torch.tensor(plans["architecture"]["arch_kwargs"]["strides"]).cumprod(0)[:-1]
    finest = torch.randint(0, 3, (4, 1, *size), generator=generator).float()
    target = [finest[..., :: int(a), :: int(b), :: int(c)].contiguous() for a, b, c in strides]
    torch.save({"data": data, "target": target}, world.root / "patches.pt")
    plans_file = world.plans_file()
    content = json.loads(plans_file.read_text())
    for configuration in content["configurations"].values():
        if "batch_size" in configuration:
            configuration["batch_size"] = 4
            configuration["batch_dice"] = True
    plans_file.write_text(json.dumps(content))
    return world


def in_two(world, check=True):
    port = str(find_free_network_port())
    command = (sys.executable, "-m", "tests.trainers.ddp_gradients", world.root, port)
    return world.run(*command, check=check, installed=True)


@pytest.mark.slow
def test_two_processes_have_the_gradients_of_one_with_the_joint_batch(patches):
    in_two(patches)
    patches.run(sys.executable, "-m", "tests.trainers.ddp_gradients", patches.root, "alone", installed=True)
    first, second, alone = (
        torch.load(patches.root / f"gradients_{name}.pt") for name in ("0_of_2", "1_of_2", "0_of_1")
    )
    assert torch.equal(first, second)
    assert alone.abs().max() > 0
    assert torch.allclose(first, alone, rtol=1e-3, atol=1e-6)


@pytest.mark.slow
def test_a_killed_process_ends_the_other(patches):
    (patches.root / "kill").touch()
    done = in_two(patches, check=False)
    assert done.returncode != 0
    assert "terminated with exit code 9" in done.stderr
