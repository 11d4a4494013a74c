"""A student's checkpoint is a plain nnU-Net checkpoint: it can be read, and predicts, where this package is not."""

import os
from pathlib import Path
from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_kd.errors import KDError
from nnunetv2_kd.students import in_words, network_cost


def stock_name(trainer: type) -> str:
    """Name of the trainer class whose network this is: the one that defines ``build_network_architecture``. nnU-Net
    looks it up to build the network for prediction, and needs nothing else of it."""
    definers = (c for c in trainer.__mro__ if "build_network_architecture" in vars(c))
    return next(definers, nnUNetTrainer).__name__


def make_stock(written: str, filename: str, trainer_name: str, record: dict[str, Any]) -> None:
    """Turn a checkpoint that was just written into one of stock nnU-Net and move it to its place in one step, so that
    a training killed in the middle leaves the previous checkpoint whole.

    Args:
        written: the file just written.
        filename: where it belongs.
        trainer_name: the stock trainer's name.
        record: plain values on where the student comes from, kept under the key ``kd``.
    """
    checkpoint = torch.load(written, map_location="cpu", weights_only=False)
    checkpoint["trainer_name"] = trainer_name
    checkpoint["kd"] = record
    torch.save(checkpoint, written)
    os.replace(written, filename)


def check_same_size(file: Path, plans: dict[str, Any], configuration: str, dataset_json: dict[str, Any]) -> None:
    """The checkpoint to resume from is of a student of this size.

    Raises:
        KDError: shows both sizes.
    """
    checkpoint = torch.load(file, map_location="cpu", weights_only=False)
    before = checkpoint["init_args"]["plans"]
    if _architecture(before, configuration) == _architecture(plans, configuration):
        return
    raise KDError(
        f"The student in {file} is of another size than the one asked for now:\n"
        f"  in the checkpoint: {_size(before, configuration, dataset_json)}\n"
        f"  asked for now:     {_size(plans, configuration, dataset_json)}\n"
        "Ask for the size of the checkpoint, or train without --c to start anew."
    )


def _architecture(plans: dict[str, Any], configuration: str) -> dict[str, Any]:
    return PlansManager(plans).get_configuration(configuration).configuration["architecture"]


def _size(plans: dict[str, Any], configuration: str, dataset_json: dict[str, Any]) -> str:
    features = _architecture(plans, configuration)["arch_kwargs"]["features_per_stage"]
    return f"{in_words(network_cost(plans, configuration, dataset_json).params)} parameters, channels {features}"
