"""Optimizer, learning rate, and how a training uses them."""

import copy
import math

import pytest
import torch
from torch import nn

from nnunetv2_kd.config import OptimizerOptions
from nnunetv2_kd.errors import KDError
from nnunetv2_kd.trainers import nnUNetTrainerJointKD, nnUNetTrainerKD, nnUNetTrainerKDBaseline
from nnunetv2_kd.trainers.conditions import initial_weights
from nnunetv2_kd.trainers.optimizer import WARMUP_START, describe_optimizer, lr_factor, make_optimizer
from nnunetv2_kd.trainers.options import resolve_options
from nnunetv2_kd.trainers.provenance import make_record
from tests.trainers.helpers import make_trainer, train

ADAMW = {"name": "adamw", "lr": 0.002, "weight_decay": 0.1, "schedule": "cosine", "warmup": 0.25}
ADAPTED = {"terms": {"fitnet": {"stages": ["encoder.0"]}}}


@pytest.mark.parametrize(
    ("given", "reference"),
    [
        ({"name": "adamw", "lr": 0.1, "weight_decay": 0.3}, lambda p: torch.optim.AdamW(p, 0.1, weight_decay=0.3)),
        ({"name": "adamw"}, lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.01)),
        (
            {"name": "sgd"},
            lambda p: torch.optim.SGD(p, 0.01, weight_decay=3e-5, momentum=0.99, nesterov=True),  # nnU-Net's
        ),
    ],
)
def test_steps_are_those_of_torch(given, reference):
    mine = nn.Linear(3, 2)
    other = copy.deepcopy(mine)
    optimizer, _ = make_optimizer(
        mine.parameters(), OptimizerOptions(schedule="constant", **given), epochs=2, iterations=2
    )
    expected = reference(other.parameters())
    for _ in range(4):
        for network, its_optimizer in ((mine, optimizer), (other, expected)):
            its_optimizer.zero_grad()
            network(torch.ones(1, 3)).square().sum().backward()
            its_optimizer.step()
    for one, two in zip(mine.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one, two)


def closed_form(iteration, iterations, schedule, warmup):
    progress = iteration / iterations
    if progress < warmup:
        return WARMUP_START + (1 - WARMUP_START) * progress / warmup
    left = (1 - progress) / (1 - warmup)
    return {"poly": left**0.9, "cosine": (1 - math.cos(math.pi * left)) / 2, "constant": 1.0}[schedule]


@pytest.mark.parametrize("schedule", ["poly", "cosine", "constant"])
@pytest.mark.parametrize("warmup", [0.0, 0.2])
def test_learning_rate_of_every_step(schedule, warmup):
    options = OptimizerOptions(name="sgd", lr=0.5, schedule=schedule, warmup=warmup)
    optimizer, scheduler = make_optimizer([nn.Parameter(torch.zeros(1))], options, epochs=4, iterations=5)
    rates = []
    for epoch in range(4):
        scheduler.step(epoch)
        for _ in range(5):
            rates.append(scheduler.get_last_lr()[0])
            optimizer.step()
    assert rates == pytest.approx([0.5 * closed_form(i, 20, schedule, warmup) for i in range(20)])
    assert lr_factor(1.0, schedule, warmup) == pytest.approx(closed_form(20, 20, schedule, warmup))


def test_a_step_that_amp_leaves_out_is_caught_up_with():
    options = OptimizerOptions(name="adamw")
    optimizer, scheduler = make_optimizer([nn.Parameter(torch.zeros(1))], options, epochs=2, iterations=2)
    scheduler.step(0)
    optimizer.step()  # of two
    scheduler.step(1)
    assert scheduler.get_last_lr()[0] == pytest.approx(0.01 * 0.5**0.9)


def test_options():
    assert resolve_options({}, {}).optimizer is None
    assert resolve_options({"optimizer": "adamw"}, {}).optimizer == OptimizerOptions(name="adamw")
    for wrong, message in (
        ({"optimizer": "lion"}, r"optimizer\.name: .*'nnunet', 'adamw' or 'sgd'.*found 'lion'"),
        ({"optimizer": {"name": "nnunet", "lr": 1}}, "nnunet is the trainer's own optimizer: remove lr"),
        ({"optimizer": {"name": "adamw", "lr": 0}}, r"optimizer\.lr: .*greater than 0"),
        ({"optimizer": {"name": "adamw", "warmup": 1}}, r"optimizer\.warmup"),
        ({"optimizer": {"name": "adamw", "momentum": 1}}, r"optimizer\.momentum: unknown key"),
        ({"ema": 1.0}, "ema: .*less than 1"),
    ):
        with pytest.raises(KDError, match=message):
            resolve_options(wrong, {})


def test_trainers_use_it_and_record_it(here):
    trainer = make_trainer(nnUNetTrainerKDBaseline, here, optimizer=ADAMW, ema=0.99)
    trainer.on_train_start()
    assert type(trainer.optimizer) is torch.optim.AdamW
    kept = make_record(trainer).training
    assert kept.optimizer == {
        "name": "AdamW",
        "lr": 0.002,
        "betas": [0.9, 0.999],
        "weight_decay": 0.1,
        "schedule": "cosine",
        "warmup": 0.25,
    }
    assert (kept.ema, kept.epochs, kept.iterations_per_epoch, kept.batch_size) == (0.99, 2, 3, 2)
    assert kept.cases == len(trainer.do_split()[0])
    assert (kept.precision, kept.augmentation) == ("float32", "of nnUNetTrainer")
    assert (kept.initial_weights, kept.early_stopping) == ("random", None)


def test_nnunets_own_is_the_default_and_described_alike(here):
    trainer = make_trainer(nnUNetTrainerKDBaseline, here, optimizer="nnunet")
    trainer.initialize()
    own = describe_optimizer(trainer.optimizer, trainer.lr_scheduler)
    same, schedule = make_optimizer(trainer.network.parameters(), OptimizerOptions(name="sgd"), 2, 3)
    assert own == describe_optimizer(same, schedule)
    assert own["name"] == "SGD"


@pytest.mark.parametrize(
    ("width", "limit", "name"), [(0.5, 500_000, "adamw"), (1.0, 500_000, "nnunet"), (0.5, 1000, "nnunet")]
)
def test_small_shrunken_students_have_adamw(here, monkeypatch, width, limit, name):
    monkeypatch.setattr("nnunetv2_kd.trainers.optimizer.SMALL", limit)
    for kind in (nnUNetTrainerKD, nnUNetTrainerKDBaseline):
        trainer = make_trainer(kind, here, student={"width": width}, optimizer=None)
        assert trainer.options.optimizer.name == name


def test_initial_weights():
    assert initial_weights(["nnUNetv2_train", "4", "-pretrained_weights", "a.pth"]) == "a.pth"
    assert initial_weights(["nnUNetv2_train", "4", "3d_fullres", "0"]) == "random"


@pytest.mark.parametrize("options", [{}, ADAPTED])
def test_resumed_is_as_uninterrupted(here, options):
    options = {**options, "epochs": 3, "save_every": 1, "optimizer": ADAMW, "ema": 0.9}
    whole = make_trainer(nnUNetTrainerKD, here, **options)
    train(whole)
    cut = make_trainer(nnUNetTrainerKD, here, **options)
    stop_after(cut, 2)
    resumed = make_trainer(nnUNetTrainerKD, here, **options)
    resumed.load_checkpoint(f"{cut.output_folder}/checkpoint_latest.pth")
    train(resumed)
    for one, other in zip(resumed.network.parameters(), whole.network.parameters(), strict=True):
        torch.testing.assert_close(one, other)
    for key, value in whole._average.state()["weights"].items():
        torch.testing.assert_close(resumed._average.state()["weights"][key], value)
    assert resumed._average.state()["steps"] == whole._average.state()["steps"] == 9
    mine, others = (t.logger.get_value("lrs", None) for t in (resumed, whole))
    assert mine == others


def stop_after(trainer, epochs):
    class StoppedError(Exception):
        pass

    def stop():
        type(trainer).on_epoch_start(trainer)
        if trainer.current_epoch == epochs:
            raise StoppedError

    trainer.on_epoch_start = stop
    with pytest.raises(StoppedError):
        trainer.run_training()


def test_resumed_with_another_optimizer(here):
    stop_after(first := make_trainer(nnUNetTrainerKDBaseline, here, save_every=1), 1)
    resumed = make_trainer(nnUNetTrainerKDBaseline, here, optimizer="adamw")
    resumed.load_checkpoint(f"{first.output_folder}/checkpoint_latest.pth")  # to validate, as with --val
    for key, value in first.network.state_dict().items():
        assert torch.equal(resumed.network.state_dict()[key], value)
    with pytest.raises(KDError, match=r"optimizer: .*'nnunet'.* in the checkpoint, .*'adamw'.* now"):
        resumed.on_train_start()


def test_a_checkpoint_of_before_is_resumed(here):
    """It has options for every term, and no optimizer."""
    stop_after(first := make_trainer(nnUNetTrainerKD, here, save_every=1, terms={"voxel_kl": {}}), 1)
    file = f"{first.output_folder}/checkpoint_latest.pth"
    checkpoint = torch.load(file, weights_only=False)
    options = checkpoint["kd"]["options"]
    options["terms"] |= {"region_kl": None, "lovasz": None}
    del options["optimizer"]
    torch.save(checkpoint, file)
    resumed = make_trainer(nnUNetTrainerKD, here, save_every=1, terms={"voxel_kl": {}})
    resumed.load_checkpoint(file)
    resumed.on_train_start()
    assert resumed.current_epoch == 1


def test_the_teacher_that_learns_along_has_its_own(here):
    trainer = make_trainer(nnUNetTrainerJointKD, here, optimizer=ADAMW)
    train(trainer)
    for optimizer in (trainer.optimizer, trainer.teacher._optimizer):
        assert type(optimizer) is torch.optim.AdamW
        steps = {int(state["step"]) for state in optimizer.state.values()}
        assert steps == {6}
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0, abs=1e-9)
