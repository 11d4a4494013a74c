"""Whether two trainings may be compared: what, other than the teacher, may have made one of them stronger."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from nnunetv2_kd.record import TrainingRecord

IN_WORDS = {
    "optimizer": "optimizer",
    "ema": "running mean of the weights",
    "epochs": "epochs",
    "iterations_per_epoch": "iterations per epoch",
    "batch_size": "batch size",
    "patch_size": "patch size",
    "cases": "training cases",
    "precision": "precision",
    "augmentation": "augmentation",
    "initial_weights": "initial weights",
    "early_stopping": "early stopping",
    "mirroring": "mirroring",
}
SINCE_THE_FIRST = ("epochs", "iterations_per_epoch", "batch_size", "cases")  # older records have only these


def describe_inequalities(mine: TrainingRecord, others: TrainingRecord) -> list[str]:
    """How two trainings differ, in words, mine first; empty if they are equal."""
    found = []
    for key, words in IN_WORDS.items():
        one, other = _describe_value(mine, key), _describe_value(others, key)
        if one != other:
            found.append(f"{words} {one} against {other}")
    return found


def _mirroring(training: TrainingRecord) -> str:
    """Mirroring in words. If it is not recorded, it was along all axes, which is nnU-Net's default."""
    if training.mirroring is None or len(training.mirroring) == len(training.patch_size or ()):
        return "all axes"
    return f"axes {', '.join(map(str, training.mirroring))}" if training.mirroring else "none"


def _describe_value(training: TrainingRecord, key: str) -> str:
    if training.optimizer is None and key not in SINCE_THE_FIRST:
        return "not recorded"
    value: Any = asdict(training)[key]
    if key == "mirroring":
        return _mirroring(training)
    if isinstance(value, Mapping):
        return ", ".join(str(part) if name == "name" else f"{name} {part}" for name, part in value.items())
    return "none" if value is None else str(value)
