"""The training conditions that may make one arm of a comparison stronger than another, for the record."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from nnunetv2_kd.record import TrainingRecord
from nnunetv2_kd.trainers.checkpoint import base_trainers
from nnunetv2_kd.trainers.optimizer import describe_optimizer

PRETRAINED = "-pretrained_weights"  # of nnUNetv2_train; nnU-Net does not tell its trainer


def training_conditions(trainer: Any) -> TrainingRecord:
    """The conditions of a training; equal for two trainings that differ only in their teacher.

    Args:
        trainer: an initialised nnU-Net trainer of ours.
    """
    return TrainingRecord(
        epochs=trainer.num_epochs,
        iterations_per_epoch=trainer.num_iterations_per_epoch,
        batch_size=trainer.configuration_manager.batch_size,  # all processes; trainer.batch_size: this one
        cases=len(trainer.do_split()[0]),
        optimizer=describe_optimizer(trainer.optimizer, trainer.lr_scheduler),
        ema=trainer.options.ema,
        patch_size=tuple(int(size) for size in trainer.configuration_manager.patch_size),
        precision="float16 (AMP)" if trainer.grad_scaler is not None else trainer.precision,
        augmentation=f"of {' and '.join(base_trainers(type(trainer)))}",
        initial_weights=trainer.initial_weights,
        early_stopping=None,  # nnU-Net has none
        mirroring=tuple(trainer.inference_allowed_mirroring_axes or ()),
    )


def initial_weights(command: Sequence[str]) -> str:
    """``random``, or the file that the command names."""
    return pretrained_file(command) or "random"


def pretrained_file(command: Sequence[str]) -> str | None:
    """The file of pretrained weights that a command names; None if it names none."""
    named = [after for before, after in pairwise(command) if before == PRETRAINED]
    return named[0] if named else None
