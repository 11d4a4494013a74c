"""Trainers in this process, without nnU-Net's final validation, for tests that need no command."""

import json
import os
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import yaml

from tests.conftest import DATASET, TINY, World
from tests.in_process import PLOTS

TERMS_OF_THE_MAIN_PATH = {"voxel_kl": {}, "region_kl": {}, "importance_map": {}, "region_affinity": {}}


def make_trainer(
    trainer: type,
    world: World,
    configuration: str = "3d_fullres",
    fold: Any = 0,
    plans: str = "nnUNetPlans",
    dataset: str = DATASET,
    device: str = "cpu",
    **options: Any,
):
    """A trainer as nnU-Net constructs it, in the world's folders (set the environment with `inside` first)."""
    file = world.root / f"options_of_process_{os.getpid()}.yaml"  # the workers of a DDP training write at the same time
    file.write_text(yaml.safe_dump({**TINY, **options}))
    plans_content = json.loads(world.plans_file(plans, dataset).read_text()) | {"continue_training": False}
    dataset_json = json.loads((world.preprocessed / dataset / "dataset.json").read_text())
    with mock.patch.dict(os.environ, {"nnUNet_kd_config": str(file)}):
        return trainer(plans_content, configuration, fold, dataset_json, torch.device(device))


def inside(world: World, monkeypatch) -> World:
    """Make this process work in the world's folders, and draw no plots."""
    for name, value in world.environment().items():
        if name.startswith("nnUNet_"):
            monkeypatch.setenv(name, value)
    for plot in PLOTS:
        monkeypatch.setattr(plot, mock.Mock())
    return world


def log_of(trainer: Any) -> str:
    return Path(trainer.log_file).read_text()


def train(trainer: Any) -> str:
    """Run nnU-Net's training loop without its final validation; returns the log."""
    trainer.run_training()
    return log_of(trainer)
