"""Trainers in this process on real cases: the effect of nnU-Net's own switches and variants on a distillation."""

import functools
import json
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

from nnunetv2_kd.distillation.loss import compute_terms
from nnunetv2_kd.networks.cpu_mode import cpu_has_bfloat16
from nnunetv2_kd.trainers import (
    DistillationMixin,
    nnUNetTrainerJointKD,
    nnUNetTrainerKD,
    nnUNetTrainerKDBaseline,
    nnUNetTrainerRegionKD,
)
from tests.conftest import copy_of
from tests.trainers.helpers import TERMS_OF_THE_MAIN_PATH as ALL_TERMS
from tests.trainers.helpers import inside, log_of, make_trainer, train


class Mine(DistillationMixin, nnUNetTrainerDA5):
    """The complete code that a user writes to distil with another trainer."""

    default_options = {"terms": {"region_kl": {}, "region_affinity": {"stages": ["encoder.-1"]}}}  # noqa: RUF012


class OneHead(DistillationMixin, nnUNetTrainerNoDeepSupervision):
    default_options = {"terms": ALL_TERMS}  # noqa: RUF012


class MeanOfLogits(torch.nn.Module):
    def forward(self, output, target):
        return output.mean()


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
    log = world.train("MyDA5", env={"nnUNet_extTrainer": str(folder)}, validate=False).stdout
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
    """nnU-Net also builds these heads for a trainer without deep supervision, but they stay random."""
    single = make_trainer(
        type("Single", (DistillationMixin, nnUNetTrainerNoDeepSupervision), {"distils": False}),
        here,
        student={"width": 1.0},
    )
    train(single)
    log = train(make_trainer(nnUNetTrainerKD, here, teacher={"trainer": "Single"}))
    assert "1 trained heads" in log


def test_compiled_student_and_teacher(here):
    """nnU-Net compiles on CUDA by default. Here with a backend that compiles nothing but traces everything."""

    class Compiled(nnUNetTrainerRegionKD):
        def _do_i_compile(self):
            return True

    with mock.patch("torch.compile", functools.partial(torch.compile, backend="eager")):
        trainer = make_trainer(Compiled, here, terms=ALL_TERMS)
        log = train(trainer)
    assert isinstance(trainer.network, torch._dynamo.OptimizedModule)
    assert trainer.teacher.network._compiled_call_impl is not None
    assert trainer.loss._compute is not compute_terms
    assert "distillation: voxel_kl" in log
    plain = make_trainer(nnUNetTrainerRegionKD, here, terms=ALL_TERMS)
    train(plain)
    assert plain._history.rows[-1]["region_affinity"] == pytest.approx(
        trainer._history.rows[-1]["region_affinity"], rel=1e-3
    )


MORE_TERMS = {**ALL_TERMS, "region_graph": {}, "fitnet": {}}


@pytest.fixture(scope="session")
def in_float32(trained_world, tmp_path_factory):
    """A trainer that has trained as stock nnU-Net does."""
    with pytest.MonkeyPatch.context() as patched:
        world = inside(copy_of(trained_world, tmp_path_factory.mktemp("float32") / "world"), patched)
        trainer = make_trainer(nnUNetTrainerRegionKD, world, terms=MORE_TERMS)
        train(trainer)
    return trainer


@pytest.mark.skipif(not cpu_has_bfloat16(), reason="this processor has no bfloat16 instructions")
@pytest.mark.parametrize("options", [{"cpu_bfloat16": True}, {"cpu_speed": "bfloat16"}, {"cpu_speed": "measure"}])
def test_cpu_speed_trains_alike_and_saves_a_stock_checkpoint(here, in_float32, options):
    full = in_float32
    fast = make_trainer(nnUNetTrainerRegionKD, here, terms=MORE_TERMS, **options)
    log = train(fast)
    for name in ("segmentation", "region_kl"):
        assert fast._history.rows[0][name] == pytest.approx(full._history.rows[0][name], rel=0.05)
    wanted = options.get("cpu_speed", "bfloat16_channels_last")
    for who in ("student", "teacher"):
        assert f"The {who} computes in " in log
        assert wanted == "measure" or f"The {who} computes in {wanted}." in log
    assert ("(measured, forward and backward: float32 " in log) == (wanted == "measure")
    checkpoint = torch.load(here.model("nnUNetTrainerRegionKD") / "fold_0" / "checkpoint_final.pth", weights_only=False)
    assert {value.dtype for value in checkpoint["network_weights"].values()} == {torch.float32}
    full.network.load_state_dict(checkpoint["network_weights"])  # into nnU-Net's network, which has the channels first


def test_cpu_speed_resumes(here):
    """In another mode than before, which a new measurement may choose."""
    for speed, epochs in (("float32_channels_last", 2), ("float32", 3)):
        trainer = make_trainer(nnUNetTrainerRegionKD, here, cpu_speed=speed, epochs=epochs, save_every=1)
        if epochs == 3:
            folder = here.model("nnUNetTrainerRegionKD") / "fold_0"
            trainer.load_checkpoint(str(folder / "checkpoint_final.pth"))
        log = train(trainer)
    assert "Epoch 2" in log


@pytest.mark.parametrize("options", [{"cpu_bfloat16": True}, {"cpu_speed": "bfloat16"}])
def test_bfloat16_is_off_where_the_processor_lacks_it(here, options):
    with mock.patch("nnunetv2_kd.networks.cpu_mode.cpu_has_bfloat16", return_value=False):
        trainer = make_trainer(nnUNetTrainerKDBaseline, here, **options)
        assert trainer._cpu_speed == "float32"
    assert "this is not a CPU with bfloat16 instructions: training as nnU-Net does." in log_of(trainer)


def test_weights_and_biases_gets_the_terms(here):
    trainer = make_trainer(nnUNetTrainerRegionKD, here)
    wandb = mock.Mock()
    trainer.logger.loggers.append(wandb)
    train(trainer)
    logged = {call.args[0] for call in wandb.log.call_args_list}
    assert {"kd/region_kl", "kd/region_kl_share", "kd/segmentation", "kd/factor"} <= logged
    assert "kd/region_kl" not in trainer.logger.local_logger.my_fantastic_logging


def test_teacher_of_a_trainer_with_the_old_signature(here):
    """nnU-Net 2.8 still supports this signature."""

    class Old(nnUNetTrainer):
        @staticmethod
        def build_network_architecture(name, kwargs, imports, channels, heads, enable_deep_supervision=True):
            return get_network_from_plans(
                name, kwargs, imports, channels, heads, deep_supervision=enable_deep_supervision
            )

    with mock.patch("nnunetv2_kd.networks.build.recursive_find_trainer_class_by_name", return_value=Old):
        trainer = make_trainer(nnUNetTrainerKD, here)
        trainer.initialize()
        trainer._start_distillation()
    assert trainer.teacher.record.params > 0


def test_progress_bar_on_a_terminal(here):
    trainer = make_trainer(nnUNetTrainerKDBaseline, here)
    with mock.patch("sys.stderr.isatty", return_value=True), mock.patch("nnunetv2_kd.trainers.mixin.tqdm") as bar:
        train(trainer)
    assert bar.call_args.kwargs["total"] == 3
    assert bar.call_args.kwargs["disable"] is False
    assert bar.return_value.update.call_count == 6


@pytest.mark.slow
def test_compiled_joint_training_and_encoder(here):
    """The teacher's best weights are exchanged in a compiled snapshot; a decoder that does not run is not compiled."""

    class Joint(nnUNetTrainerJointKD):
        def _do_i_compile(self):
            return True

        def _teacher_dice(self):
            super()._teacher_dice()
            return 0.1 * (self.current_epoch + 1)

    class Encoder(nnUNetTrainerKD):
        def _do_i_compile(self):
            return True

    with mock.patch("torch.compile", functools.partial(torch.compile, backend="eager")):
        assert "distillation: region_kl" in train(make_trainer(Joint, here))
        trainer = make_trainer(Encoder, here, terms={"fitnet": {"stages": ["encoder.1"]}})
        assert "distillation: fitnet" in train(trainer)
    teacher = trainer.teacher.network
    compiled = [module._compiled_call_impl is not None for module in (teacher, teacher.encoder, teacher.decoder)]
    assert compiled == [False, True, False]


def test_all_ignored_patch_trains_on(here):
    """A patch without a single label must not cause NaN."""
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
