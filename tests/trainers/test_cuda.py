"""Tests that need an NVIDIA GPU: autocast in half precision, compilation, and the same terms as on the CPU."""

import json

import numpy as np
import pytest
import torch

from nnunetv2_kd.trainers import (
    nnUNetTrainerJointKD,
    nnUNetTrainerKD,
    nnUNetTrainerMultiTeacherKD,
    nnUNetTrainerRegionGraphKD,
    nnUNetTrainerRegionKD,
)
from tests.conftest import DATASET
from tests.trainers.helpers import inside, make_trainer, train
from tests.trainers.test_terms import ALL_TERMS

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]


@pytest.fixture
def no_tf32(monkeypatch):
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def loss_of(trainer, batch, device, autocast):
    """The values of all terms, and the student's gradient, for one batch on one device; the trainer is moved there."""
    teacher = trainer.teacher
    for module in (trainer.network, teacher.network, trainer.distillation.trained_parts):
        module.to(device)
    trainer.network.zero_grad()
    data, target = batch["data"].to(device), [y.to(device) for y in batch["target"]]
    with torch.autocast("cuda", enabled=autocast), trainer.loss.distilling(teacher.run(data)):
        value = trainer.loss(trainer.network(data), target)
    value.backward()
    gradient = torch.cat([p.grad.flatten().cpu() for p in trainer.network.parameters() if p.grad is not None])
    return {name: float(value) for name, value in trainer.loss.values.items()}, gradient


def test_terms_are_those_of_the_cpu(here, no_tf32):
    trainer = make_trainer(nnUNetTrainerKD, here, terms=ALL_TERMS)
    trainer.on_train_start()
    trainer.on_epoch_start()
    trainer.on_train_epoch_start()
    batch = next(trainer.dataloader_train)
    expected, expected_gradient = loss_of(trainer, batch, "cpu", autocast=False)
    found, gradient = loss_of(trainer, batch, "cuda", autocast=False)
    assert found == pytest.approx(expected, rel=1e-3)
    assert float((gradient - expected_gradient).norm() / expected_gradient.norm()) < 1e-2
    halved, gradient = loss_of(trainer, batch, "cuda", autocast=True)
    assert halved == pytest.approx(expected, rel=0.05, abs=1e-3)
    assert float((gradient - expected_gradient).norm() / expected_gradient.norm()) < 0.2  # measured: 0.10


@pytest.mark.parametrize("compiled", ["0", "1"])
def test_amp_and_compile(here, monkeypatch, compiled):
    monkeypatch.setenv("nnUNet_compile", compiled)
    trainer = make_trainer(nnUNetTrainerRegionKD, here, terms=ALL_TERMS, device="cuda")
    train(trainer)
    assert isinstance(trainer.network, torch._dynamo.OptimizedModule) == (compiled == "1")
    assert all(np.isfinite(row[name]) for row in trainer._history.rows for name in ALL_TERMS)


@pytest.mark.parametrize(
    ("trainer", "options"),
    [
        (nnUNetTrainerRegionGraphKD, {}),
        (nnUNetTrainerMultiTeacherKD, {"teachers": [{}, {"checkpoint": "checkpoint_best.pth"}]}),
        (nnUNetTrainerJointKD, {"epochs": 3}),
        (nnUNetTrainerKD, {"terms": {"fitnet": {}, "recokd": {}}}),
    ],
)
def test_every_trainer(here, monkeypatch, trainer, options):
    monkeypatch.setenv("nnUNet_compile", "0")
    run = make_trainer(trainer, here, device="cuda", **options)
    train(run)
    assert all(np.isfinite(value) for row in run._history.rows for value in row.values())
    checkpoint = torch.load(
        here.model(trainer.__name__) / "fold_0" / "checkpoint_final.pth", map_location="cpu", weights_only=False
    )
    assert all(torch.isfinite(value).all() for value in checkpoint["network_weights"].values())


def test_resumes(here, monkeypatch):
    monkeypatch.setenv("nnUNet_compile", "0")
    options = {"terms": {"fitnet": {}, "region_kl": {}}, "save_every": 1, "device": "cuda"}
    train(make_trainer(nnUNetTrainerKD, here, epochs=1, **options))
    folder = here.model("nnUNetTrainerKD") / "fold_0"
    state = torch.load(folder / "checkpoint_final.pth", map_location="cpu", weights_only=False)
    resumed = make_trainer(nnUNetTrainerKD, here, epochs=2, **options)
    resumed.load_checkpoint(str(folder / "checkpoint_final.pth"))
    assert state["current_epoch"] == resumed.current_epoch == 1
    assert "Epoch 1" in train(resumed)


def test_commands(world, monkeypatch):
    """Store, train with the store, validate and predict, all on the GPU."""
    here = inside(world, monkeypatch)
    store = here.run("nnUNetv2_kd", "store", "-d", "4", "-device", "cuda", installed=True).stdout
    header = json.loads(
        (here.preprocessed / DATASET / "nnUNetPlans_3d_fullres_teacher_fold_0" / "store.json").read_text()
    )
    assert header["teachers"], store
    options = here.options(stored_teacher="fold_0")
    log = here.run(
        "nnUNetv2_train",
        "4",
        "3d_fullres",
        "0",
        "-tr",
        "nnUNetTrainerRegionKD",
        "-device",
        "cuda",
        installed=True,
        nnUNet_kd_config=str(options),
    ).stdout
    assert "Stored teacher: " in log
    assert "Mean Validation Dice" in log
    images = here.raw / DATASET / "imagesTr"
    here.run(
        "nnUNetv2_predict",
        "-i",
        images,
        "-o",
        here.root / "predicted",
        "-d",
        "4",
        "-c",
        "3d_fullres",
        "-f",
        "0",
        "-tr",
        "nnUNetTrainerRegionKD",
        "-device",
        "cuda",
        "-npp",
        "1",
        "-nps",
        "1",
        installed=True,
    )
    assert len(list((here.root / "predicted").glob("*.nii.gz"))) == len(list(images.iterdir()))
