"""Teacher and student trained together."""

import json
import shutil
from operator import attrgetter
from unittest import mock

import numpy as np
import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunetv2_kd.cli.main import main
from nnunetv2_kd.errors import KDError
from nnunetv2_kd.trainers import joint, nnUNetTrainerJointKD
from tests.trainers.helpers import log_of, make_trainer, train
from tests.trainers.test_terms import one_epoch


class Good(nnUNetTrainerJointKD):
    """A trainer whose teacher counts as good from the first epoch on, which tiny networks never are."""

    def _make_teacher(self, labels):
        teacher = super()._make_teacher(labels)
        end_epoch = teacher.end_epoch

        def good_epoch(epoch):
            with mock.patch.object(joint, "mean_dice", return_value=0.1 * (epoch + 1) if epoch != 2 else 0.0):
                return end_epoch(epoch)

        teacher.end_epoch = good_epoch
        return teacher


@pytest.fixture
def here_alone(here):
    """No trained teacher is needed."""
    shutil.rmtree(here.model("nnUNetTrainer"))
    return here


def test_no_distillation_before_the_first_snapshot(here_alone):
    trainer = make_trainer(Good, here_alone)
    log = train(trainer)
    assert "Teacher: the network of nnUNetPlans, " in log
    assert [row["epoch"] for row in trainer._history.rows] == [1]
    assert "teaches from now on" in log
    assert trainer._history.rows[0]["region_kl"] > 0


def test_only_the_best_weights_teach(here_alone):
    trainer = make_trainer(Good, here_alone, epochs=3)
    trainer.on_train_start()
    one_epoch(trainer)
    one_epoch(trainer)
    best = {key: value.clone() for key, value in trainer.teacher.snapshot.network.state_dict().items()}
    one_epoch(trainer)  # worse than before
    for key, value in trainer.teacher.snapshot.network.state_dict().items():
        assert torch.equal(value, best[key])
    learner = trainer.teacher._learner.state_dict()
    assert any(not torch.equal(learner[key], best[key]) for key in best)


def test_teacher_learns_from_nnunets_loss_alone(here_alone):
    """Its first step equals that of the same network in a training without any distillation."""
    trainer = make_trainer(Good, here_alone)
    trainer.on_train_start()
    plain = json.loads(here_alone.plans_file().read_text()) | {"continue_training": False}
    dataset_json = json.loads((here_alone.preprocessed / plain["dataset_name"] / "dataset.json").read_text())
    alone = nnUNetTrainer(plain, "3d_fullres", 0, dataset_json, torch.device("cpu"))
    alone.initialize()
    alone.network.load_state_dict(trainer.teacher._learner.state_dict())
    trainer.on_epoch_start()
    trainer.on_train_epoch_start()
    batch = next(trainer.dataloader_train)
    alone.train_step({key: batch[key] for key in ("data", "target")})
    trainer.train_step(batch)
    for mine, other in zip(trainer.teacher._learner.parameters(), alone.network.parameters(), strict=True):
        torch.testing.assert_close(mine, other)


def test_both_survive_a_kill(here_alone):
    """Killed after two of three epochs and resumed, student and teacher equal those of an uninterrupted training."""
    options = {"epochs": 3, "save_every": 1}
    whole = make_trainer(Good, here_alone, **options)
    train(whole)
    cut = make_trainer(Good, here_alone, **options)
    cut.on_train_start()
    one_epoch(cut)
    one_epoch(cut)
    folder = here_alone.model("Good") / "fold_0"
    resumed = make_trainer(Good, here_alone, **options)
    resumed.load_checkpoint(str(folder / "checkpoint_latest.pth"))
    train(resumed)
    for part in ("network", "teacher._learner", "teacher.snapshot.network"):
        mine, other = (attrgetter(part)(trainer).state_dict() for trainer in (resumed, whole))
        for key, value in other.items():
            torch.testing.assert_close(mine[key], value)
    assert resumed.teacher.best == whole.teacher.best
    final = torch.load(folder / "checkpoint_final.pth", weights_only=False)
    assert "kd_training" not in final
    assert final["network_weights"].keys() == whole.network.state_dict().keys()
    assert final["trainer_name"] == "nnUNetTrainer"


def test_a_pretrained_teacher_is_refused(here):
    with pytest.raises(KDError, match=r"trains its own teacher beside the student; 'teacher' in the options"):
        make_trainer(nnUNetTrainerJointKD, here, teacher={"fold": 0})


def test_plans_of_the_teacher_are_gone(here_alone):
    assert main(["plan", "-d", "4", "-c", "3d_fullres", "-o", "nnUNetPlansSmall"]) == 0
    trainer = make_trainer(nnUNetTrainerJointKD, here_alone, plans="nnUNetPlansSmall")
    assert trainer._teacher_plans["plans_name"] == "nnUNetPlans"
    here_alone.plans_file().rename(here_alone.root / "moved.json")
    with pytest.raises(KDError, match=r"were made from nnUNetPlans, which the teacher needs.*nnUNetv2_plan_experiment"):
        make_trainer(nnUNetTrainerJointKD, here_alone, plans="nnUNetPlansSmall")


def test_dice_of_a_teacher_that_finds_nothing(here_alone):
    trainer = make_trainer(nnUNetTrainerJointKD, here_alone)
    counts = {"tp_hard": np.zeros(2), "fp_hard": np.zeros(2), "fn_hard": np.zeros(2)}
    assert joint.mean_dice([counts], trainer.of_all_workers) == 0
    counts["tp_hard"][0], counts["fn_hard"][1] = 3, 2
    assert joint.mean_dice([counts], trainer.of_all_workers) == pytest.approx(0.5)
    assert "WARNING" not in log_of(trainer)


def test_both_networks_may_compute_in_another_way(here_alone):
    log = train(make_trainer(Good, here_alone, cpu_speed="float32_channels_last"))
    for who in ("student", "teacher in training", "teacher"):
        assert f"The {who} computes in float32_channels_last." in log
    assert "distillation: " in log
