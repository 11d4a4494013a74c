"""Differences that may have made one of two trainings stronger."""

from dataclasses import fields, replace

import pytest

from nnunetv2_kd.leaderboard.equal_arms import IN_WORDS, describe_inequalities
from nnunetv2_kd.record import TrainingRecord
from nnunetv2_kd.trainers import nnUNetTrainerKD, nnUNetTrainerKDBaseline
from nnunetv2_kd.trainers.provenance import make_record
from tests.conftest import World
from tests.trainers.helpers import inside, make_trainer

TRAINING = TrainingRecord(
    optimizer={"name": "AdamW", "lr": 0.01, "schedule": "poly"},
    epochs=4,
    iterations_per_epoch=250,
    batch_size=8,
    patch_size=(56, 40),
    cases=160,
    precision="float32",
    augmentation="of nnUNetTrainer",
    initial_weights="random",
)
OLDER = TrainingRecord(epochs=4, iterations_per_epoch=250, batch_size=8, cases=160)


def test_equal():
    assert describe_inequalities(TRAINING, replace(TRAINING)) == []
    assert describe_inequalities(OLDER, replace(OLDER)) == []
    assert {field.name for field in fields(TrainingRecord)} == IN_WORDS.keys()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"ema": 0.999}, "running mean of the weights none against 0.999"),
        ({"cases": 8}, "training cases 160 against 8"),
        ({"early_stopping": 20}, "early stopping none against 20"),
        (
            {"optimizer": {"name": "SGD", "lr": 0.01, "schedule": "poly"}},
            "optimizer AdamW, lr 0.01, schedule poly against SGD, lr 0.01, schedule poly",
        ),
    ],
)
def test_each_difference_is_reported(changed, message):
    assert describe_inequalities(TRAINING, replace(TRAINING, **changed)) == [message]


def test_an_older_record_is_not_taken_for_equal():
    assert all(line.endswith("against not recorded") for line in describe_inequalities(TRAINING, OLDER))
    assert describe_inequalities(OLDER, replace(OLDER, cases=9)) == ["training cases 160 against 9"]


def test_trainers_record_all_of_it(world: World, monkeypatch: pytest.MonkeyPatch):
    inside(world, monkeypatch)
    kept = []
    for trainer in (nnUNetTrainerKD, nnUNetTrainerKDBaseline):
        made = make_trainer(trainer, world, optimizer="adamw")
        made.on_train_start()
        kept.append(make_record(made).training)
    assert describe_inequalities(*kept) == []
    assert describe_inequalities(kept[0], replace(kept[1], epochs=9)) == ["epochs 2 against 9"]
