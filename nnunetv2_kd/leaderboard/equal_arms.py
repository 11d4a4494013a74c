"""Whether two trainings may be compared: what may have made one of them stronger, beside its teacher."""

from collections.abc import Mapping
from typing import Any

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
}
NOT_RECORDED = "not recorded"


def unequal(mine: Mapping[str, Any], others: Mapping[str, Any]) -> list[str]:
    """In what two trainings differ, in words, first mine, then the other's; empty where they are equal.

    Args:
        mine, others: what the records keep under ``training``; empty in records of earlier versions, which are equal
            to each other in what nobody knows.
    """
    found = []
    for key, words in IN_WORDS.items():
        one, other = _value(mine, key), _value(others, key)
        if one != other:
            found.append(f"{words}: {one} against {other}")
    return found


def _value(training: Mapping[str, Any], key: str) -> str:
    if key not in training:
        return NOT_RECORDED
    value = training[key]
    if isinstance(value, Mapping):
        return ", ".join(str(part) if name == "name" else f"{name} {part}" for name, part in value.items())
    return "none" if value is None else str(value)
