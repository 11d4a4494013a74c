"""Trainers in this process on real cases: the loss, the teacher, options, and resuming."""

import json
import shutil
from unittest import mock

import pytest
import torch

from nnunetv2_kd.errors import KDError
from nnunetv2_kd.trainers import nnUNetTrainerKD, nnUNetTrainerKDBaseline, nnUNetTrainerRegionKD
from nnunetv2_kd.trainers.options import resolve_options
from nnunetv2_kd.trainers.provenance import make_record
from tests.trainers.helpers import TERMS_OF_THE_MAIN_PATH as ALL_TERMS
from tests.trainers.helpers import log_of, make_trainer, train


def teacher_weights(world):
    file = world.model("nnUNetTrainer") / "fold_0" / "checkpoint_final.pth"
    return torch.load(file, weights_only=False)["network_weights"]


def test_loss_is_nnunets_plus_weighted_terms(here):
    trainer = make_trainer(
        nnUNetTrainerKD, here, terms={"voxel_kl": {"weight": 0.5}, "region_kl": {"weight": 2}}, schedule={"warmup": 0.5}
    )
    trainer.on_train_start()
    trainer.on_epoch_start()
    trainer.on_train_epoch_start()
    trainer._iteration = 1
    batch = next(trainer.dataloader_train)
    loss = float(trainer.train_step(batch)["loss"])
    values = {name: float(value) for name, value in trainer.loss.values.items()}
    factor = (1 / 3 / 2) / 0.5
    expected = values["segmentation"] + factor * (0.5 * values["voxel_kl"] + 2 * values["region_kl"])
    assert loss == pytest.approx(expected, rel=1e-5)


def test_where_the_factor_is_0_the_teacher_does_not_run(here):
    trainer = make_trainer(nnUNetTrainerKD, here, schedule={"warmup": 0.5})
    trainer.on_train_start()
    trainer.on_epoch_start()
    trainer.on_train_epoch_start()
    calls = []
    trainer.teacher.network.register_forward_hook(lambda *_: calls.append(trainer._iteration))
    for _ in range(2):
        trainer.train_step(next(trainer.dataloader_train))
    assert calls == [1]  # the factor rises from 0 in the first step


def test_validation_loss_is_nnunets_own(here):
    trainer = make_trainer(nnUNetTrainerRegionKD, here)
    trainer.on_train_start()
    trainer.on_validation_epoch_start()
    batch = next(trainer.dataloader_val)
    with torch.no_grad():
        loss = float(trainer.validation_step({key: batch[key] for key in ("data", "target")})["loss"])
        expected = float(trainer.loss.segmentation(trainer.network(batch["data"]), batch["target"]))
    assert loss == pytest.approx(expected)
    assert trainer.loss.taps.take() == {}


def test_loss_zero_when_identical(here):
    """Every term is 0 if student and teacher are the same network."""
    trainer = make_trainer(nnUNetTrainerRegionKD, here, terms=ALL_TERMS, student={"width": 1.0})
    trainer.initialize()
    trainer.network.load_state_dict(teacher_weights(here))
    trainer.on_train_start()
    assert "is as large as its teacher" in log_of(trainer)
    trainer.on_epoch_start()
    trainer.on_train_epoch_start()
    trainer.train_step(next(trainer.dataloader_train))
    for name in ALL_TERMS:
        assert float(trainer.loss.values[name]) == pytest.approx(0, abs=1e-6)


def test_a_term_that_is_silently_off_stops_the_training(here):
    options = {"terms": {"region_affinity": {"weight": 1e-9}}, "student": {"width": 1.0}, "iterations_per_epoch": 60}
    trainer = make_trainer(nnUNetTrainerRegionKD, here, **options)
    trainer.on_train_start()
    with (
        mock.patch("nnunetv2_kd.methods.region_affinity.affinity_difference", lambda s, t, present: s.sum() * 0),
        pytest.raises(KDError, match="region_affinity was exactly 0 in the first 50 iterations"),
    ):
        trainer.run_training()


def test_a_teacher_never_changes(here):
    before = teacher_weights(here)
    trainer = make_trainer(nnUNetTrainerRegionKD, here)
    train(trainer)
    assert not trainer.teacher.network.training
    for key, value in trainer.teacher.network.state_dict().items():
        assert torch.equal(value, before[key])
    mine = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert not mine & {id(p) for p in trainer.teacher.network.parameters()}


def test_baseline_trains_the_same_student_without_a_teacher(here):
    """Same weights at the start, same batches, and no teacher needed."""
    distilled, alone = (make_trainer(t, here) for t in (nnUNetTrainerRegionKD, nnUNetTrainerKDBaseline))
    batches = []
    for trainer in (distilled, alone):
        trainer.on_train_start()
        trainer.on_epoch_start()
        batches.append(next(trainer.dataloader_train)["data"].clone())
    for one, other in zip(distilled.network.parameters(), alone.network.parameters(), strict=True):
        assert torch.equal(one, other)
    torch.testing.assert_close(*batches)
    shutil.rmtree(here.model("nnUNetTrainer"))
    assert "distillation" not in train(make_trainer(nnUNetTrainerKDBaseline, here, terms=ALL_TERMS))


def test_teacher_of_another_fold_is_a_warning_and_recorded(here):
    trainer = make_trainer(nnUNetTrainerKD, here, fold=1, teacher={"fold": 0})
    trainer.initialize()
    trainer._start_distillation()
    assert "the teacher is of fold 0, the student of fold 1: the teacher was trained on" in log_of(trainer)
    assert make_record(trainer).teachers[0].seen_validation_cases > 0


def test_no_term_has_a_weight(here):
    with pytest.raises(KDError, match=r"no distillation term with a weight above 0.*nnUNetTrainerKDBaseline"):
        make_trainer(nnUNetTrainerKD, here, terms={"voxel_kl": {"weight": 0}})


def test_options_in_the_plans(here):
    file = here.plans_file()
    plans = json.loads(file.read_text()) | {"kd": {"terms": {"region_kl": {"temperature": 3}}}}
    file.write_text(json.dumps(plans))
    trainer = make_trainer(nnUNetTrainerKD, here)
    assert trainer.options.terms["region_kl"].temperature == 3
    assert "voxel_kl" not in trainer.options.terms


def test_unknown_stage_is_reported_before_training(here):
    trainer = make_trainer(nnUNetTrainerRegionKD, here, terms={"region_affinity": {"stages": ["encoder.9"]}})
    with pytest.raises(KDError, match=r"no stage 'encoder.9'. Its stages are encoder.0, "):
        trainer.on_train_start()


def test_a_stage_named_twice_in_two_ways(here):
    stages = ["decoder.0", "decoder.-3"]
    trainer = make_trainer(nnUNetTrainerRegionKD, here, terms={"region_affinity": {"stages": stages}})
    with pytest.raises(KDError, match="names a stage twice"):
        trainer.on_train_start()


def test_options_file_of_a_training_can_be_used_again(here):
    """Also with a teacher that is named by its folder, which excludes every other way to name it."""
    folder = here.model("nnUNetTrainer")
    trainer = make_trainer(nnUNetTrainerRegionKD, here, teacher={"folder": str(folder), "fold": 0})
    trainer.on_train_start()
    written = resolve_options({}, {}, folder.parent / trainer.output_folder / "kd_options.yaml")
    assert written == trainer.options


def test_resuming_with_other_terms_is_refused(here):
    """For example if the options file is forgotten in the command with --c."""
    train(make_trainer(nnUNetTrainerRegionKD, here, terms={"region_kl": {"weight": 3}}))
    again = make_trainer(nnUNetTrainerRegionKD, here)
    again.load_checkpoint(str(here.model("nnUNetTrainerRegionKD") / "fold_0" / "checkpoint_final.pth"))
    with pytest.raises(KDError, match=r"(?s)terms: .*'weight': 3.* in the checkpoint.*export nnUNet_kd_config=.*yaml"):
        again.on_train_start()


def test_a_budget_is_solved_for_the_trained_configuration_only(here):
    """3d_fullres cannot become that small, which does not matter for a 2d student."""
    trainer = make_trainer(nnUNetTrainerKDBaseline, here, configuration="2d", student={"flops": "0.2M"})
    assert list(trainer.plans_manager.plans["kd_student"]["width"]) == ["2d"]


def test_checkpoint_survives_a_kill_while_saving(here):
    trainer = make_trainer(nnUNetTrainerKDBaseline, here)
    train(trainer)
    file = here.model("nnUNetTrainerKDBaseline") / "fold_0" / "checkpoint_final.pth"
    before = file.read_bytes()
    with (
        mock.patch("nnunetv2_kd.trainers.mixin.os.replace", side_effect=KeyboardInterrupt),
        pytest.raises(KeyboardInterrupt),
    ):
        trainer.save_checkpoint(str(file))
    assert file.read_bytes() == before


def test_the_teacher_does_not_run_where_the_factor_is_0(here):
    """The factor is 0 in the last third of the training: there are two epochs of three iterations, and it fades out
    from the start."""
    trainer = make_trainer(nnUNetTrainerKD, here, terms={"voxel_kl": {}}, schedule={"decay_from": 0.0, "final": 0.0})
    trainer.on_train_start()
    ran = []
    trainer.teacher.network.register_forward_hook(lambda *_: ran.append(trainer._iteration))
    trainer.on_epoch_start()
    trainer.on_train_epoch_start()
    for factor in (1.0, 0.0, 0.5):
        with mock.patch.object(trainer, "_factor", return_value=factor):
            trainer.train_step(next(trainer.dataloader_train))
    assert ran == [0, 2]


def test_the_teacher_runs_in_every_second_step(here):
    """Two epochs of three iterations: counted within the epoch, so that a resumed training has the same steps."""
    trainer = make_trainer(nnUNetTrainerKD, here, terms={"voxel_kl": {}}, schedule={"every": 2})
    taught, step = [], trainer._distillation_step

    def counted(*args):
        taught.append((trainer.current_epoch, trainer._iteration))
        return step(*args)

    with mock.patch.object(trainer, "_distillation_step", counted):
        train(trainer)
    assert taught == [(0, 0), (0, 2), (1, 0), (1, 2)]
