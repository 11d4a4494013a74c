"""Trainers in this process on real cases: what nnU-Net's switches do to a distillation."""

import functools
import json
import shutil
import textwrap
from unittest import mock

import numpy as np
import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerDA5 import nnUNetTrainerDA5
from nnunetv2.training.nnUNetTrainer.variants.network_architecture.nnUNetTrainerNoDeepSupervision import (
    nnUNetTrainerNoDeepSupervision,
)
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

from nnunetv2_kd.config import resolve_options
from nnunetv2_kd.errors import KDError
from nnunetv2_kd.trainers import (
    DistillationMixin,
    nnUNetTrainerKD,
    nnUNetTrainerKDBaseline,
    nnUNetTrainerRegionKD,
)
from nnunetv2_kd.trainers.environment import cpu_has_bfloat16
from tests.trainers.helpers import inside, log_of, make_trainer

ALL_TERMS = {"voxel_kl": {}, "region_kl": {}, "importance_map": {}, "region_affinity": {}}


class Mine(DistillationMixin, nnUNetTrainerDA5):
    """All that a user writes to distil with another trainer."""

    default_options = {"terms": {"region_kl": {}, "region_affinity": {"stages": ["encoder.-1"]}}}  # noqa: RUF012


class OneHead(DistillationMixin, nnUNetTrainerNoDeepSupervision):
    default_options = {"terms": ALL_TERMS}  # noqa: RUF012


class MeanOfLogits(torch.nn.Module):
    def forward(self, output, target):
        return output.mean()


@pytest.fixture
def here(world, monkeypatch):
    return inside(world, monkeypatch)


def train(trainer):
    trainer.run_training()
    return log_of(trainer)


def teacher_weights(world):
    file = world.model("nnUNetTrainer") / "fold_0" / "checkpoint_final.pth"
    return torch.load(file, weights_only=False)["network_weights"]


def test_another_trainer_needs_the_mixin_and_nothing_else(here):
    trainer = make_trainer(Mine, here)
    assert "distillation: region_kl" in train(trainer)
    checkpoint = torch.load(here.model("Mine") / "fold_0" / "checkpoint_final.pth", weights_only=False)
    assert checkpoint["trainer_name"] == "nnUNetTrainer"


def test_users_own_trainer_through_the_command(world):
    folder = world.root / "my_trainers"
    folder.mkdir()
    (folder / "mine.py").write_text(
        textwrap.dedent("""
        from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerDA5 import nnUNetTrainerDA5
        from nnunetv2_kd.trainers import DistillationMixin

        class MyDA5(DistillationMixin, nnUNetTrainerDA5):
            default_options = {"terms": {"voxel_kl": {}}}
        """)
    )
    log = world.train("MyDA5", env={"nnUNet_extTrainer": str(folder)}).stdout
    assert "distillation: voxel_kl" in log


def test_deep_supervision_off(here):
    assert "distillation: voxel_kl" in train(make_trainer(OneHead, here))


def test_a_student_with_other_stages(here):
    """Fewer stages and larger strides: features and heads are matched by size."""
    plans = json.loads(here.plans_file().read_text())
    kwargs = plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    for key in ("features_per_stage", "kernel_sizes", "n_conv_per_stage"):
        kwargs[key] = kwargs[key][:3]
    kwargs |= {"n_stages": 3, "strides": [[1, 1, 1], [2, 2, 2], [4, 4, 4]], "n_conv_per_stage_decoder": [1, 1]}
    plans |= {"plans_name": "nnUNetPlansShallow", "kd_student": {"made_from": "nnUNetPlans", "width": {}}}
    here.plans_file("nnUNetPlansShallow").write_text(json.dumps(plans))
    terms = {"voxel_kl": {}, "region_affinity": {"stages": ["encoder.-1", "decoder.0"]}}
    log = train(make_trainer(nnUNetTrainerKD, here, plans="nnUNetPlansShallow", terms=terms))
    assert "distillation: voxel_kl" in log


def test_a_teacher_without_trained_low_heads(here):
    """nnU-Net builds the heads of a trainer without deep supervision too, but they are random."""
    single = make_trainer(type("Single", (DistillationMixin, nnUNetTrainerNoDeepSupervision), {"distils": False}), here,
                          student={"width": 1.0})  # fmt: skip
    train(single)
    log = train(make_trainer(nnUNetTrainerKD, here, teacher={"trainer": "Single"}))
    assert "1 trained heads" in log


def test_loss_is_nnunets_plus_weighted_terms(here):
    trainer = make_trainer(nnUNetTrainerKD, here, terms={"voxel_kl": {"weight": 0.5}, "region_kl": {"weight": 2}},
                           schedule={"warmup": 0.5})  # fmt: skip
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
    """Every term is 0 where student and teacher are the same network."""
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
        mock.patch("nnunetv2_kd.losses.region_affinity", lambda s, t, m: s.sum() * 0),
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
    assert trainer._record()["teacher"]["seen_validation_cases"] > 0


def test_no_term_has_a_weight(here):
    with pytest.raises(KDError, match=r"no distillation term with a weight above 0.*nnUNetTrainerKDBaseline"):
        make_trainer(nnUNetTrainerKD, here, terms={"voxel_kl": {"weight": 0}})


def test_options_in_the_plans(here):
    file = here.plans_file()
    plans = json.loads(file.read_text()) | {"kd": {"terms": {"region_kl": {"temperature": 3}}}}
    file.write_text(json.dumps(plans))
    trainer = make_trainer(nnUNetTrainerKD, here)
    assert trainer.options.terms.region_kl.temperature == 3
    assert trainer.options.terms.voxel_kl is None


def test_unknown_stage_is_told_before_training(here):
    trainer = make_trainer(nnUNetTrainerRegionKD, here, terms={"region_affinity": {"stages": ["encoder.9"]}})
    with pytest.raises(KDError, match=r"no stage 'encoder.9'. Its stages are encoder.0, "):
        trainer.on_train_start()


def test_a_stage_named_twice_in_two_ways(here):
    stages = ["decoder.0", "decoder.-3"]
    trainer = make_trainer(nnUNetTrainerRegionKD, here, terms={"region_affinity": {"stages": stages}})
    with pytest.raises(KDError, match="names a stage twice"):
        trainer.on_train_start()


def test_compiled_student(here):
    """nnU-Net compiles on CUDA by default. Here with a backend that compiles nothing but traces everything."""

    class Compiled(nnUNetTrainerRegionKD):
        def _do_i_compile(self):
            return True

    with mock.patch("torch.compile", functools.partial(torch.compile, backend="eager")):
        trainer = make_trainer(Compiled, here, terms=ALL_TERMS)
        log = train(trainer)
    assert isinstance(trainer.network, torch._dynamo.OptimizedModule)
    assert "distillation: voxel_kl" in log
    plain = make_trainer(nnUNetTrainerRegionKD, here, terms=ALL_TERMS)
    train(plain)
    assert plain._history.rows[-1]["region_affinity"] == pytest.approx(
        trainer._history.rows[-1]["region_affinity"], rel=1e-3
    )


@pytest.mark.skipif(not cpu_has_bfloat16(), reason="this processor has no bfloat16 instructions")
def test_cpu_bfloat16_trains_alike_and_saves_float32(here):
    full = make_trainer(nnUNetTrainerRegionKD, here)
    train(full)
    half = make_trainer(nnUNetTrainerRegionKD, here, cpu_bfloat16=True)
    train(half)
    for name in ("segmentation", "region_kl"):
        assert half._history.rows[0][name] == pytest.approx(full._history.rows[0][name], rel=0.05)
    checkpoint = torch.load(here.model("nnUNetTrainerRegionKD") / "fold_0" / "checkpoint_final.pth", weights_only=False)
    assert {value.dtype for value in checkpoint["network_weights"].values()} == {torch.float32}


def test_cpu_bfloat16_is_off_where_the_processor_lacks_it(here):
    with mock.patch("nnunetv2_kd.trainers.environment.cpu_has_bfloat16", return_value=False):
        trainer = make_trainer(nnUNetTrainerKDBaseline, here, cpu_bfloat16=True)
        assert not trainer._uses_cpu_bfloat16
    assert "no CPU with bfloat16 instructions" in log_of(trainer)


def test_weights_and_biases_gets_the_terms(here):
    trainer = make_trainer(nnUNetTrainerRegionKD, here)
    wandb = mock.Mock()
    trainer.logger.loggers.append(wandb)
    train(trainer)
    logged = {call.args[0] for call in wandb.log.call_args_list}
    assert {"kd/region_kl", "kd/region_kl_share", "kd/segmentation", "kd/factor"} <= logged
    assert "kd/region_kl" not in trainer.logger.local_logger.my_fantastic_logging


def test_options_file_of_a_training_can_be_used_again(here):
    """Also with a teacher named by folder, which excludes naming it otherwise."""
    folder = here.model("nnUNetTrainer")
    trainer = make_trainer(nnUNetTrainerRegionKD, here, teacher={"folder": str(folder), "fold": 0})
    trainer.on_train_start()
    written = resolve_options({}, {}, folder.parent / trainer.output_folder / "kd_options.yaml")
    assert written == trainer.options


def test_resuming_with_other_terms_is_refused(here):
    """As when the options file is forgotten on the line with --c."""
    train(make_trainer(nnUNetTrainerRegionKD, here, terms={"region_kl": {"weight": 3}}))
    again = make_trainer(nnUNetTrainerRegionKD, here)
    again.load_checkpoint(str(here.model("nnUNetTrainerRegionKD") / "fold_0" / "checkpoint_final.pth"))
    with pytest.raises(KDError, match=r"(?s)terms: .*'weight': 3.* in the checkpoint.*export nnUNet_kd_config=.*yaml"):
        again.on_train_start()


def test_teacher_of_a_trainer_with_the_old_signature(here):
    """Which nnU-Net 2.8 still supports."""

    class Old(nnUNetTrainer):
        @staticmethod
        def build_network_architecture(name, kwargs, imports, channels, heads, enable_deep_supervision=True):
            return get_network_from_plans(
                name, kwargs, imports, channels, heads, deep_supervision=enable_deep_supervision
            )

    with mock.patch("nnunetv2_kd.teachers.teacher.recursive_find_trainer_class_by_name", return_value=Old):
        trainer = make_trainer(nnUNetTrainerKD, here)
        trainer.initialize()
        trainer._start_distillation()
    assert trainer.teacher.record.params > 0


def test_a_budget_is_solved_for_the_trained_configuration_only(here):
    """3d_fullres cannot be made that small, which is no concern of a 2d student."""
    trainer = make_trainer(nnUNetTrainerKDBaseline, here, configuration="2d", student={"flops": "0.2M"})
    assert list(trainer.plans_manager.plans["kd_student"]["width"]) == ["2d"]


def test_progress_bar_on_a_terminal(here):
    trainer = make_trainer(nnUNetTrainerKDBaseline, here)
    with mock.patch("sys.stderr.isatty", return_value=True), mock.patch("nnunetv2_kd.trainers.mixin.tqdm") as bar:
        train(trainer)
    assert bar.call_args.kwargs["total"] == 3
    assert bar.call_args.kwargs["disable"] is False
    assert bar.return_value.update.call_count == 6


def test_checkpoint_survives_a_kill_while_saving(here):
    trainer = make_trainer(nnUNetTrainerKDBaseline, here)
    train(trainer)
    file = here.model("nnUNetTrainerKDBaseline") / "fold_0" / "checkpoint_final.pth"
    before = file.read_bytes()
    with (
        mock.patch("nnunetv2_kd.trainers.checkpoint.os.replace", side_effect=KeyboardInterrupt),
        pytest.raises(KeyboardInterrupt),
    ):
        trainer.save_checkpoint(str(file))
    assert file.read_bytes() == before


def test_all_ignored_patch_trains_on(here):
    """A patch without a single label must not make anything nan."""
    trainer = make_trainer(nnUNetTrainerRegionKD, here, terms={**ALL_TERMS, "region_kl": {"membership": "labels"}})
    trainer.on_train_start()
    trainer.loss.labels = type(trainer.loss.labels)(3, False, ignore_label=9)
    trainer.on_epoch_start()
    trainer.on_train_epoch_start()
    batch = next(trainer.dataloader_train)
    trainer.loss.segmentation.loss = MeanOfLogits()  # nnU-Net's own was built for a dataset without ignore label
    batch["target"] = [torch.full_like(target, 9) for target in batch["target"]]
    assert np.isfinite(trainer.train_step(batch)["loss"])
    assert float(trainer.loss.values["voxel_kl"]) == 0
    assert all(torch.isfinite(p.grad).all() for p in trainer.network.parameters() if p.grad is not None)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("compiled", ["0", "1"])
def test_amp_and_compile_on_cuda(here, monkeypatch, compiled):
    monkeypatch.setenv("nnUNet_compile", compiled)
    trainer = make_trainer(nnUNetTrainerRegionKD, here, terms=ALL_TERMS, device="cuda")
    train(trainer)
    assert all(np.isfinite(row[name]) for row in trainer._history.rows for name in ALL_TERMS)
