"""What ``-tr`` names."""

import re
from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunetv2_kd.trainers.joint import JointMixin
from nnunetv2_kd.trainers.mixin import DistillationMixin


class nnUNetTrainerKD(DistillationMixin, nnUNetTrainer):
    """Voxel KL on every supervised head (Hinton et al., arXiv 1503.02531)."""

    default_options = {"terms": {"voxel_kl": {"weight": 1.0, "temperature": 1.0}}}  # noqa: RUF012


class nnUNetTrainerRegionKD(DistillationMixin, nnUNetTrainer):
    """Terms that look at regions and not at voxels; defaults from docs/results.md, EMKD's own in configs/emkd.yaml."""

    default_options = {  # noqa: RUF012
        "terms": {
            "region_kl": {"weight": 1.0, "temperature": 1.0},
            "region_affinity": {"weight": 0.9, "stages": ["encoder.1", "decoder.0"]},
        },
        "schedule": {"decay_from": 0.3, "final": 0.0},
    }


class nnUNetTrainerRegionGraphKD(DistillationMixin, nnUNetTrainer):
    """Feature filtering and region graph (MSKD, doi 10.1016/j.compbiomed.2023.107284; formulas ours)."""

    default_options = {  # noqa: RUF012
        "terms": {
            "voxel_kl": {"weight": 0.1, "temperature": 4.0},
            "feature_filtering": {"weight": 0.1, "stages": ["encoder.1", "decoder.0"]},
            "region_graph": {"weight": 10.0, "stages": ["encoder.1", "decoder.0"]},
        }
    }


class nnUNetTrainerMultiTeacherKD(DistillationMixin, nnUNetTrainer):
    """Several teachers, named under ``teachers:``, each trained on its own few cases (arXiv 2303.09494)."""

    default_options = {  # noqa: RUF012
        "terms": {
            "voxel_kl": {"weight": 1.0, "temperature": 1.0},
            "lovasz": {"weight": 0.5},
            "soft_dice": {"weight": 0.5},
            "region_affinity": {"weight": 0.9, "stages": ["encoder.1", "decoder.0"]},
        }
    }
    least_teachers = 2


class nnUNetTrainerJointKD(JointMixin, nnUNetTrainer):
    """Teacher and student trained together (doi 10.1007/978-3-031-51455-5_21; details ours)."""

    default_options = {  # noqa: RUF012
        "terms": {
            "region_kl": {"weight": 1.0, "temperature": 1.0},
            "region_affinity": {"weight": 0.9, "stages": ["encoder.1", "decoder.0"]},
        }
    }


class nnUNetTrainerKDBaseline(DistillationMixin, nnUNetTrainer):
    """The same student, options, seed and schedule without a teacher: what a distilled student is compared with."""

    distils = False


TRAINERS = (
    nnUNetTrainerKD,
    nnUNetTrainerRegionKD,
    nnUNetTrainerRegionGraphKD,
    nnUNetTrainerMultiTeacherKD,
    nnUNetTrainerJointKD,
    nnUNetTrainerKDBaseline,
)


def with_epochs(trainer: type[nnUNetTrainer], epochs: int, name: str) -> type[nnUNetTrainer]:
    """The trainer under another name with a fixed number of epochs, which wins over the options."""

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

    return type(name, (trainer,), {"__init__": __init__, "__module__": __name__, "__doc__": trainer.__doc__})


def __getattr__(name: str) -> Any:
    """``nnUNetTrainerRegionKD_250epochs`` for any trainer and any number."""
    match = re.fullmatch(r"(\w+?)_(?:([1-9]\d*)epochs|(1)epoch)", name)
    base = {trainer.__name__: trainer for trainer in TRAINERS}.get(match[1]) if match else None
    if match is None or base is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    trainer = with_epochs(base, int(match[2] or match[3]), name)
    globals()[name] = trainer
    return trainer


__all__ = [
    "DistillationMixin",
    "nnUNetTrainerJointKD",
    "nnUNetTrainerKD",
    "nnUNetTrainerKDBaseline",
    "nnUNetTrainerMultiTeacherKD",
    "nnUNetTrainerRegionGraphKD",
    "nnUNetTrainerRegionKD",
]
