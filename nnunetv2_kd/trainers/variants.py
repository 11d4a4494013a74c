"""Combine our trainers with nnU-Net's other trainers by name: ``nnUNetTrainerRegionKD_DA5_NoMirroring_250epochs``.

Supported are nnU-Net's variants that change augmentation, mirroring, loss, sampling or deep supervision. Variants with
another optimizer or learning rate are not, because our options set these; nor are variants whose network the plans do
not describe.
"""

import re
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

VARIANTS_PACKAGE = "nnunetv2.training.nnUNetTrainer.variants"
# A name may combine one variant of each group. They become base classes in this order, so that a variant comes before
# any other whose behaviour it changes.
GROUPS: Mapping[str, Mapping[str, str]] = {
    "mirroring": {
        "NoMirroring": "data_augmentation.nnUNetTrainerNoMirroring.nnUNetTrainerNoMirroring",
        "onlyMirror01": "data_augmentation.nnUNetTrainerNoMirroring.nnUNetTrainer_onlyMirror01",
    },
    "deep supervision": {
        "NoDeepSupervision": "network_architecture.nnUNetTrainerNoDeepSupervision.nnUNetTrainerNoDeepSupervision",
    },
    "loss": {
        "CELoss": "loss.nnUNetTrainerCELoss.nnUNetTrainerCELoss",
        "DiceLoss": "loss.nnUNetTrainerDiceLoss.nnUNetTrainerDiceLoss",
        "DiceCELoss_noSmooth": "loss.nnUNetTrainerDiceLoss.nnUNetTrainerDiceCELoss_noSmooth",
        "Topk10Loss": "loss.nnUNetTrainerTopkLoss.nnUNetTrainerTopk10Loss",
        "Topk10LossLS01": "loss.nnUNetTrainerTopkLoss.nnUNetTrainerTopk10LossLS01",
        "DiceTopK10Loss": "loss.nnUNetTrainerTopkLoss.nnUNetTrainerDiceTopK10Loss",
    },
    "sampling": {
        name: f"sampling.nnUNetTrainer_probabilisticOversampling.nnUNetTrainer_{name}"
        for name in (
            "probabilisticOversampling",
            "probabilisticOversampling_033",
            "probabilisticOversampling_010",
        )
    },
    "augmentation": {
        "DA5": "data_augmentation.nnUNetTrainerDA5.nnUNetTrainerDA5",
        "DA5ord0": "data_augmentation.nnUNetTrainerDA5.nnUNetTrainerDA5ord0",
        "DA5Segord0": "data_augmentation.nnUNetTrainerDA5.nnUNetTrainerDA5Segord0",
        "DASegOrd0": "data_augmentation.nnUNetTrainerDAOrd0.nnUNetTrainer_DASegOrd0",
        "noDummy2DDA": "data_augmentation.nnUNetTrainer_noDummy2DDA.nnUNetTrainer_noDummy2DDA",
        "NoDA": "data_augmentation.nnUNetTrainerNoDA.nnUNetTrainerNoDA",
    },
}
EPOCHS = re.compile(r"(?:([1-9]\d*)epochs|(1)epoch)")
_NAMES = sorted((name for group in GROUPS.values() for name in group), key=len, reverse=True)
_SUFFIX = re.compile(rf"_({'|'.join(map(re.escape, _NAMES))}|{EPOCHS.pattern})$")


def variant_names() -> list[str]:
    """All variants, as written at the end of a trainer's name."""
    return [name for group in GROUPS.values() for name in group]


def split_name(trainer: str) -> tuple[str, frozenset[str]]:
    """Split a trainer's name into the name without variants and epochs, and the set of these.

    >>> name, suffixes = split_name("nnUNetTrainerRegionKD_DA5_250epochs")
    >>> name, sorted(suffixes)
    ('nnUNetTrainerRegionKD', ['250epochs', 'DA5'])
    """
    found: list[str] = []
    while (match := _SUFFIX.search(trainer)) is not None:
        found.append(match[1])
        trainer = trainer[: match.start()]
    return trainer, frozenset(found)


def compose(name: str, ours: Sequence[type[nnUNetTrainer]], module: str) -> type[nnUNetTrainer] | None:
    """The trainer of that name; None if a part of the name is unknown, or two variants are of the same group.

    Args:
        name: as given with ``-tr``.
        ours: our trainers that can be combined with variants.
        module: the module whose attribute the trainer will be.
    """
    base_name, parts = split_name(name)
    base = {trainer.__name__: trainer for trainer in ours}.get(base_name)
    epochs = [part for part in parts if EPOCHS.fullmatch(part)]
    picked = [[variant for variant in group if variant in parts] for group in GROUPS.values()]
    if base is None or not parts or len(epochs) > 1 or any(len(of_group) > 1 for of_group in picked):
        return None
    paths = [group[of_group[0]] for group, of_group in zip(GROUPS.values(), picked, strict=True) if of_group]
    bases = (base, *(_load(path) for path in paths))
    content: dict[str, Any] = {"__module__": module, "__doc__": base.__doc__}
    if epochs:
        content["__init__"] = _init_with_epochs(base, int(re.findall(r"\d+", epochs[0])[0]))
    return type(name, bases, content)


def _load(path: str) -> type[nnUNetTrainer]:
    module, _, name = path.rpartition(".")
    found: type[nnUNetTrainer] = getattr(import_module(f"{VARIANTS_PACKAGE}.{module}"), name)
    return found


def _init_with_epochs(trainer: type[nnUNetTrainer], epochs: int) -> Any:
    """A constructor with a fixed number of epochs, which overrides the options."""

    # the parameters' names matter: nnU-Net reads them from the signature
    def __init__(  # noqa: N807
        self: Any,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008
    ) -> None:
        trainer.__init__(self, plans, configuration, fold, dataset_json, device)
        self.num_epochs = epochs

    return __init__
