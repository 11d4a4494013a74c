"""Commands that cannot continue end with the reason alone, and the commands that they print work."""

import shlex
import signal
import subprocess
from pathlib import Path
from unittest import mock

import pytest
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunetv2_kd.trainers.error_exit import did_you_mean, trainer_names
from nnunetv2_kd.trainers.mixin import DistillationMixin
from tests.conftest import BIN, World

NAMES = ["nnUNetTrainer", "nnUNetTrainerDA5", "nnUNetTrainerRegionKD", "nnUNetTrainerKDBaseline", "nnUNetTrainerKD"]


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("nnUNetTrainerRegoinKD", "-tr nnUNetTrainerRegionKD"),
        ("nnunettrainerregionkd", "-tr nnUNetTrainerRegionKD"),
        ("nnUNetTrainerRegionKD_6epoch", "-tr nnUNetTrainerRegionKD_6epochs"),
        ("nnUNetTrainerKDbaseline_250epochs", "-tr nnUNetTrainerKDBaseline_250epochs"),
        ("nnUNetTrainerRegionsKD_DA5_250epochs", "-tr nnUNetTrainerRegionKD_DA5_250epochs"),
        ("nnUNetTrainerDA4", "-tr nnUNetTrainerDA5"),
        ("RegionKD", "-tr nnUNetTrainerRegionKD"),
        ("xyz", "Trainers of nnunetv2_kd: nnUNetTrainerKD, nnUNetTrainerKDBaseline, nnUNetTrainerRegionKD."),
    ],
)
def test_did_you_mean(name, meant):
    assert meant in did_you_mean(name, NAMES)


def test_trainers_of_nnunet_and_of_the_users_folders_are_known(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text("class MyTrainer(nnUNetTrainer):\n    pass\n")
    monkeypatch.setenv("nnUNet_extTrainer", str(tmp_path))
    assert {"nnUNetTrainerNoMirroring", "nnUNetTrainerRegionKD", "MyTrainer"} <= set(trainer_names())


def test_a_misspelt_trainer(world):
    done = world.run("nnUNetv2_train", "4", "3d_fullres", "0", "-tr", "nnUNetTrainerRegoinKD", "-device", "cpu",
                     check=False, installed=True)  # fmt: off
    assert done.returncode == 1
    expected = "Error: There is no trainer nnUNetTrainerRegoinKD. Did you mean -tr nnUNetTrainerRegionKD"
    assert done.stderr.strip().splitlines()[-1].startswith(expected)
    assert "Traceback" not in done.stderr


def test_a_missing_teacher_is_reported_once_and_the_line_for_it_works(world):
    options = {"epochs": 1, "iterations_per_epoch": 1}
    done = world.train("nnUNetTrainerKD", fold="1", check=False, **options)
    assert done.stderr.count("No teacher") == 1
    assert "Traceback" not in done.stderr
    (line,) = [part for part in done.stderr.splitlines() if part.startswith("Train it with: ")]
    assert line.endswith("nnUNetv2_train 4 3d_fullres 1 -device cpu")  # no CUDA device here
    with mock.patch.object(nnUNetTrainer, "on_train_start", one_iteration(nnUNetTrainer.on_train_start)):
        trained = world.run(*shlex.split(line.removeprefix("Train it with: ")), validate=False)
        assert "nnunetv2_kd" not in trained.stdout
        assert "Training done." in world.train("nnUNetTrainerKD", fold="1", validate=False, **options).stdout


def one_iteration(plain):
    """Instead of nnU-Net's own 250,000."""

    def on_train_start(self):
        self.num_epochs = self.num_iterations_per_epoch = self.num_val_iterations_per_epoch = 1
        plain(self)

    return on_train_start


def test_no_cuda_device(world, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    file = world.options(epochs=1, iterations_per_epoch=1)
    done = world.run("nnUNetv2_train", "4", "3d_fullres", "0", "-tr", "nnUNetTrainerKDBaseline", check=False,
                     nnUNet_kd_config=str(file))  # fmt: off
    assert done.returncode == 1
    variable, *command = shlex.split(done.stderr.strip().splitlines()[-1])
    assert command[-2:] == ["-device", "cpu"]
    name, value = variable.split("=", 1)
    assert "Training done." in world.run(*command, validate=False, **{name: value}).stdout


@pytest.mark.slow
def test_ctrl_c_and_the_line_that_goes_on(world):
    """As if a user presses it, with nnU-Net's worker processes running."""
    file = world.options(epochs=1000, iterations_per_epoch=2, save_every=1)
    command = [BIN / "nnUNetv2_train", "4", "3d_fullres", "0", "-tr", "nnUNetTrainerKDBaseline", "-device", "cpu"]
    environment = world.environment(nnUNet_kd_config=str(file), PYTHONUNBUFFERED="1", nnUNet_n_proc_DA="1")
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True) as process:
        for line in process.stdout:
            if "Epoch 3" in line:
                process.send_signal(signal.SIGINT)
                break
        _, error = process.communicate()
    assert process.returncode != 0
    assert "Traceback" not in error
    message, line = error.strip().splitlines()[-2:]
    assert message.startswith("Interrupted in epoch 3. Go on from checkpoint_latest.pth:")
    resumed(world, line)


def test_an_interruption_names_the_line_that_goes_on(world, monkeypatch):
    plain = DistillationMixin.plain_train_step

    def press_ctrl_c(trainer, batch):
        if trainer.current_epoch == 1:
            raise KeyboardInterrupt
        return plain(trainer, batch)

    with mock.patch.object(DistillationMixin, "plain_train_step", press_ctrl_c):
        done = world.train("nnUNetTrainerKDBaseline", check=False, epochs=3, iterations_per_epoch=1, save_every=1)
    message, line = done.stderr.strip().splitlines()[-2:]
    assert message == "Interrupted in epoch 1. Go on from checkpoint_latest.pth:"
    assert "Traceback" not in done.stderr
    resumed(world, line)


def resumed(world: World, line: str) -> None:
    variable, *command = shlex.split(line)
    name, value = variable.split("=", 1)
    options = Path(value)
    options.write_text(options.read_text().replace("epochs: 1000", "epochs: 5"))  # a thousand are not waited for
    log = world.run(*command, validate=False, **{name: value}).stdout
    assert "Training done." in log
    assert "Epoch 0\n" not in log
