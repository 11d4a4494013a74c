"""The same student without a teacher: the name of its trainer, and the command that trains it."""

import re
import shlex
from pathlib import Path
from typing import Any

from nnunetv2_kd.nnunet.datasets import dataset_id
from nnunetv2_kd.nnunet.model_folder import OPTIONS_FILE, fold_name, parse_model_name
from nnunetv2_kd.record import Record
from nnunetv2_kd.trainers.command_line import command_with
from nnunetv2_kd.trainers.options import VARIABLE
from nnunetv2_kd.trainers.variants import split_name

ALONE_TRAINER = "nnUNetTrainerKDBaseline"
NOT_AGAIN = ("--c", "--val", "--val_best", "--npz")


def variant_suffix(trainer: str) -> str:
    """The variants and epochs at the end of a trainer's name, such as ``_DA5_250epochs``; empty if there are none.

    >>> variant_suffix("nnUNetTrainerRegionKD_DA5_250epochs")
    '_DA5_250epochs'
    """
    return trainer[len(split_name(trainer)[0]) :]


def baseline_command(record: Record, fold: Path) -> str:
    """The command that trains a distilled student's fair counterpart: with the same options and number of epochs, but
    without a teacher.

    Args:
        record: of the student.
        fold: its folder, ``DATASET/TRAINER__PLANS__CONFIGURATION/fold_0``.
    """
    trainer = ALONE_TRAINER + variant_suffix(record.trainer)
    file = fold.absolute() / OPTIONS_FILE
    options: dict[str, Any] = {VARIABLE: file if file.is_file() else None}
    kept = [argument for argument in _command(record, fold) if argument not in NOT_AGAIN]
    if "-tr" in kept:
        kept[kept.index("-tr") + 1] = trainer
        return command_with(kept, **options)
    return command_with([*kept, "-tr", trainer], **options)


def _command(record: Record, fold: Path) -> list[str]:
    """The command that trained the student; if another launcher did, nnU-Net's command that does the same."""
    command = shlex.split(record.command)
    if command and re.fullmatch(r"nnUNetv2_train(\.exe)?", command[0]):
        return command
    name = parse_model_name(fold.parent.name)
    configuration = name.configuration if name is not None else "3d_fullres"
    number = dataset_id(fold.parents[1].name)
    return ["nnUNetv2_train", number, configuration, fold_name(fold), "-p", record.student.made_from]
