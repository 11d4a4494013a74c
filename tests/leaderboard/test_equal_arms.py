"""What may have made one of two trainings stronger."""

import pytest

from nnunetv2_kd.leaderboard.equal_arms import IN_WORDS, unequal
from nnunetv2_kd.trainers import nnUNetTrainerKD, nnUNetTrainerKDBaseline
from nnunetv2_kd.trainers.provenance import make_record
from tests.conftest import World
from tests.trainers.helpers import inside, make_trainer

TRAINING = {
    "optimizer": {"name": "AdamW", "lr": 0.01, "schedule": "poly"},
    "ema": None,
    "epochs": 4,
    "iterations_per_epoch": 250,
    "batch_size": 8,
    "patch_size": [56, 40],
    "cases": 160,
    "precision": "float32",
    "augmentation": "of nnUNetTrainer",
    "initial_weights": "random",
    "early_stopping": None,
}


def test_equal():
    assert unequal(TRAINING, dict(TRAINING)) == []
    assert unequal({}, {}) == []
    assert TRAINING.keys() == IN_WORDS.keys()


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"ema": 0.999}, "running mean of the weights: none against 0.999"),
        ({"cases": 8}, "training cases: 160 against 8"),
        ({"early_stopping": 20}, "early stopping: none against 20"),
        (
            {"optimizer": {"name": "SGD", "lr": 0.01, "schedule": "poly"}},
            "optimizer: AdamW, lr 0.01, schedule poly against SGD, lr 0.01, schedule poly",
        ),
    ],
)
def test_each_difference_is_told(changed, told):
    assert unequal(TRAINING, TRAINING | changed) == [told]


def test_an_older_record_is_not_taken_for_equal():
    assert unequal(TRAINING, {})[0].endswith("against not recorded")


def test_trainers_record_all_of_it(world: World, monkeypatch: pytest.MonkeyPatch):
    inside(world, monkeypatch)
    kept = []
    for trainer in (nnUNetTrainerKD, nnUNetTrainerKDBaseline):
        made = make_trainer(trainer, world, optimizer="adamw")
        made.on_train_start()
        kept.append(make_record(made)["training"])
    assert kept[0].keys() == IN_WORDS.keys()
    assert unequal(*kept) == []
    assert unequal(kept[0], kept[1] | {"epochs": 9}) == ["epochs: 2 against 9"]
