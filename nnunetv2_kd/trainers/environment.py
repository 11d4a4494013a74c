"""Checks of the environment before a training starts, and seeds."""

import random
from pathlib import Path

import numpy as np
import torch
from nnunetv2.paths import nnUNet_results
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunetv2_kd.errors import KDError
from nnunetv2_kd.networks.devices import is_available
from nnunetv2_kd.nnunet.files import why_not_writable
from nnunetv2_kd.nnunet.paths import problem_of
from nnunetv2_kd.trainers.command_line import current_command


def check_results_folder() -> None:
    """Check that nnUNet_results is set and can be written to.

    Raises:
        KDError: says what is wrong and what to type.
    """
    if not nnUNet_results.is_set():
        raise KDError(
            "The environment variable nnUNet_results is not set, so there is no place to write the student to or to "
            "find a teacher in. Set it: export nnUNet_results=/path/to/nnUNet_results"
        )
    for name in ("nnUNet_results", "nnUNet_preprocessed"):
        if mistake := problem_of(name):
            raise KDError(mistake)
    folder = Path(nnUNet_results)
    problem = why_not_writable(folder)
    if problem:
        raise KDError(
            f"nnUNet_results={folder} cannot be written to ({problem}). Correct its permissions, or use another "
            "folder: export nnUNet_results=/path/to/nnUNet_results"
        )


def check_fold_folder(folder: Path) -> None:
    """Check that the folder of a fold, which is made if it is missing, and that of its model can be written to.

    Raises:
        KDError: names the folder that cannot, and says what to type.
    """
    for place in (folder, folder.parent):
        problem = why_not_writable(place)
        if problem:
            there = next(parent for parent in (place, *place.parents) if parent.exists())
            raise KDError(
                f"{place} cannot be written to ({problem}), so nothing of this training could be kept. Correct its "
                f"permissions: chmod u+w '{there}'"
            )


def splits_as_nnunet(trainer: type, mixin: type) -> bool:
    """Whether the trainer that ours extends leaves the choice of a fold's cases to nnU-Net."""
    own = [c for c in trainer.__mro__ if "do_split" in vars(c) and c is not mixin]
    return own[:1] == [nnUNetTrainer]


def check_device(device: torch.device) -> None:
    """Check that the device exists.

    Raises:
        KDError: if it does not; gives the command to type.
    """
    if not is_available(device):
        name = {"cuda": "CUDA device", "mps": "Apple GPU"}[device.type]
        raise KDError(f"This machine has no {name}. Train on the processor:\n  {current_command('-device', 'cpu')}")


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy (augmentation) and torch (weights)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
