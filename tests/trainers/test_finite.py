"""NaN and infinity are skipped, counted, reported, and never saved in a checkpoint."""

import json
from unittest import mock

import blosc2
import numpy as np
import pytest
import torch
from torch import nn

from nnunetv2_kd.errors import KDError
from nnunetv2_kd.teachers.teacher import TeacherOutput
from nnunetv2_kd.trainers import finite, nnUNetTrainerKD, nnUNetTrainerKDBaseline
from tests.conftest import DATASET
from tests.trainers.helpers import log_of, make_trainer, train

NAN = float("nan")


def batch(*values):
    data = torch.zeros(len(values), 1, 4)
    data[:, 0, 0] = torch.tensor(values)
    return {"data": data, "keys": [f"case_{number}" for number in range(len(values))]}


@pytest.fixture
def steps():
    said = []
    made = finite.FiniteSteps(said.append)
    made.said = said
    return made


def test_an_optimizer_makes_no_step_that_is_not_finite():
    network = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(network.parameters(), 1.0)
    finite.refuse_non_finite_steps(optimizer)
    before = network.weight.detach().clone()
    network(torch.tensor([[NAN, 1.0]])).sum().backward()
    with pytest.raises(finite.NotFiniteError):
        optimizer.step()
    assert torch.equal(network.weight, before)
    optimizer.zero_grad()
    network(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    assert not torch.equal(network.weight, before)


def test_another_batch_takes_the_place_of_one_that_is_not_finite(steps):
    good = batch(1.0, 2.0)
    others = iter([batch(0.0, float("inf")), good])
    assert steps.batch(batch(NAN, 1.0), others) is good
    assert [line.split(" contains")[0] for line in steps.said] == [
        "WARNING: the image of case_0",
        "WARNING: the image of case_1",
    ]
    steps.count_taken()
    (line,) = steps.close_epoch(3, 5)
    assert "skipped in epoch 3" in line
    assert "1 for the image of case_0, 1 for the image of case_1" in line
    assert steps.close_epoch(4, 5) == []


def test_too_many_in_a_row_end_the_training_with_the_reason(steps):
    for _ in range(finite.MOST_IN_A_ROW - 1):
        steps.count_skipped("the term kl")
    steps.count_taken()
    for _ in range(finite.MOST_IN_A_ROW - 1):
        steps.count_skipped("the term kl")
    assert len(steps.said) == 1
    with pytest.raises(KDError, match=r"The term kl was not finite, and 25 steps in a row"):
        steps.count_skipped("the term kl")


def test_an_epoch_without_a_step_ends_the_training(steps):
    for _ in range(3):
        steps.count_skipped(finite.TEACHER)
    with pytest.raises(KDError, match=r"The teacher's output was not finite[\s\S]*name another teacher"):
        steps.close_epoch(0, 3)


@pytest.mark.parametrize(
    ("teacher", "values", "what"),
    [
        (NAN, {"segmentation": 1.0, "kl": NAN}, "the teacher's output"),
        (1.0, {"segmentation": 1.0, "kl": NAN}, "the term kl"),
        (1.0, {"segmentation": NAN, "kl": NAN}, "nnU-Net's loss"),
        (1.0, {"segmentation": 1.0, "kl": 1.0}, "the gradient"),
        (None, {}, "nnU-Net's loss or its gradient"),
    ],
)
def test_what_is_to_blame(teacher, values, what):
    output = None if teacher is None else TeacherOutput([torch.full((1, 2), teacher)])
    assert finite.first_not_finite(output, {name: torch.tensor(value) for name, value in values.items()}) == what


def test_a_left_out_step_counts_as_the_mean_of_the_others():
    outputs = [{"loss": np.float32(value)} for value in (1.0, NAN, 3.0)]
    assert [float(output["loss"]) for output in finite.fill_in_losses(outputs)] == [1.0, 2.0, 3.0]


def test_one_case_with_nan_voxels_is_left_out(here):
    folder = here.preprocessed / DATASET
    case = json.loads((folder / "splits_final.json").read_text())[0]["train"][0]
    file = folder / "nnUNetPlans_3d_fullres" / f"{case}.b2nd"
    image = np.full_like(blosc2.open(str(file))[:], np.nan)
    file.unlink()
    blosc2.asarray(image, urlpath=str(file))
    trainer = make_trainer(nnUNetTrainerKD, here, iterations_per_epoch=6, epochs=1)
    log = train(trainer)
    assert f"WARNING: the image of {case} contains numbers that are not finite" in log
    assert "steps skipped in epoch 0" in log
    weights = torch.load(f"{trainer.output_folder}/checkpoint_final.pth", weights_only=False)["network_weights"]
    assert all(torch.isfinite(value).all() for value in weights.values())
    assert trainer._iteration == 6


def test_a_teacher_that_is_not_finite_ends_the_training_and_nothing_is_saved(here, monkeypatch):
    plain = nnUNetTrainerKD._start_distillation

    def broken(trainer):
        plain(trainer)
        next(trainer.teacher.network.parameters()).data.fill_(NAN)
        trainer.teacher._version = trainer.teacher._weights_version()

    monkeypatch.setattr(nnUNetTrainerKD, "_start_distillation", broken)
    trainer = make_trainer(nnUNetTrainerKD, here, epochs=1)
    with pytest.raises(KDError, match="The teacher's output was not finite"):
        trainer.run_training()
    assert "the teacher's output was not finite: the step was skipped" in log_of(trainer)


def test_weights_that_are_not_finite_are_not_saved(here):
    trainer = make_trainer(nnUNetTrainerKDBaseline, here)
    trainer.initialize()
    file = f"{trainer.output_folder}/checkpoint_latest.pth"
    trainer.save_checkpoint(file)
    next(trainer.network.parameters()).data.view(-1)[0] = NAN
    with pytest.raises(KDError, match=r"1 of \d+ weights are not finite \(encoder"):
        trainer.save_checkpoint(file)
    saved = torch.load(file, weights_only=False)["network_weights"]
    assert all(torch.isfinite(value).all() for value in saved.values())


def with_a_scaler(trainer, scale):
    """As on a GPU, where nnU-Net scales losses up so that small gradients survive float16."""
    trainer.grad_scaler = torch.amp.GradScaler("cpu", init_scale=scale, backoff_factor=2.0**-120)
    steps = []
    plain = trainer._finite.count_scaled_down

    def scaled_down():
        steps.append(trainer._iteration)
        plain()

    trainer._finite.count_scaled_down = scaled_down
    return steps


def test_a_step_that_the_scaler_leaves_out_is_no_fault(here):
    """The first of a scale that is too large: nnU-Net leaves it out, scales less, and goes on."""
    trainer = make_trainer(nnUNetTrainerKD, here, epochs=1, iterations_per_epoch=3)
    trainer.initialize()
    left_out = with_a_scaler(trainer, 2.0**127)
    next(trainer.network.parameters()).register_hook(lambda gradient: gradient * 1e9)
    log = train(trainer)
    assert left_out == [0]
    assert trainer.grad_scaler.get_scale() == 2.0**7
    assert "left out" not in log
    assert "not finite" not in log


def test_a_gradient_that_no_scale_mends_ends_the_training(here):
    trainer = make_trainer(nnUNetTrainerKD, here, epochs=1, iterations_per_epoch=finite.MOST_IN_A_ROW + 5)
    trainer.initialize()
    left_out = with_a_scaler(trainer, 1.0)
    trainer.grad_scaler.set_backoff_factor(0.5)
    next(trainer.network.parameters()).register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(KDError, match="The gradient was not finite, and 25 steps in a row"):
        trainer.run_training()
    assert left_out == list(range(finite.MOST_IN_A_ROW))


def test_a_loss_that_is_not_finite_is_told_with_a_scaler_too(here, monkeypatch):
    """The scaler leaves the step out; what is told is the loss, and that once."""
    trainer = make_trainer(nnUNetTrainerKDBaseline, here, epochs=1, iterations_per_epoch=3)
    left_out = with_a_scaler(trainer, 1.0)
    plain = type(trainer).plain_train_step

    def broken(trained, batch):
        if trained._iteration != 1:
            return plain(trained, batch)
        loss = trained.loss
        with mock.patch.object(trained, "loss", lambda *arguments: loss(*arguments) * NAN):
            return plain(trained, batch)

    monkeypatch.setattr(type(trainer), "plain_train_step", broken)
    log = train(trainer)
    assert log.count("the step was skipped") == 1
    assert left_out == []
    assert all(torch.isfinite(value).all() for value in trainer.network.parameters())
