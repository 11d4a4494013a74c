"""The trainers that ``-tr`` can name."""

from typing import Any

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunetv2_kd.trainers.joint import JointMixin
from nnunetv2_kd.trainers.mixin import DistillationMixin
from nnunetv2_kd.trainers.variants import compose


class nnUNetTrainerKD(DistillationMixin, nnUNetTrainer):
    """Voxel KL on every supervised head (Hinton et al., arXiv 1503.02531)."""

    default_options = {"terms": {"voxel_kl": {"weight": 1.0, "temperature": 1.0}}}  # noqa: RUF012


class nnUNetTrainerRegionKD(DistillationMixin, nnUNetTrainer):
    """Terms on regions instead of voxels; defaults from docs/results.md, EMKD's own in configs/emkd.yaml."""

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
    """The same student, options, seed and schedule without a teacher, to compare distilled students with."""

    distils = False


TRAINERS = (
    nnUNetTrainerKD,
    nnUNetTrainerRegionKD,
    nnUNetTrainerRegionGraphKD,
    nnUNetTrainerMultiTeacherKD,
    nnUNetTrainerJointKD,
    nnUNetTrainerKDBaseline,
)


def __getattr__(name: str) -> Any:
    """Combine a trainer with nnU-Net's variants and a number of epochs: ``nnUNetTrainerRegionKD_DA5_250epochs``."""
    trainer = compose(name, TRAINERS, __name__)
    if trainer is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
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
