"""From what several teachers say about a scan to labels, where they are sure, and to how far they agree."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from nnunetv2.utilities.label_handling.label_handling import LabelManager

Structures = dict[str, int | tuple[int, ...]]


@dataclass(frozen=True)
class Rules:
    """When a teacher's label is taken.

    Attributes:
        confidence: least probability, in [0, 1], that the mean of the teachers must give a voxel's label; of a region
            that it is there, or is not.
        votes: least share of the teachers, in [0, 1], whose own label it must be.
        scan_dice: least mean Dice, in [0, 1], of the teachers with their mean; scans below are left out.
    """

    confidence: float
    votes: float
    scan_dice: float

    def ignores(self, teachers: int) -> bool:
        """Whether any voxel may be left without a label."""
        return self.confidence > 0 or (self.votes > 0 and teachers > 1)


@dataclass(frozen=True)
class PseudoLabels:
    """Labels of one scan.

    Attributes:
        segmentation: ``(*S)`` of nnU-Net's labels, with the ignore label where the teachers are not sure.
        voxels: of each structure, before voxels were ignored.
        ignored: voxels.
        agreement: mean Dice of the teachers with their mean, in [0, 1]; None of a single teacher.
    """

    segmentation: np.ndarray
    voxels: dict[str, int]
    ignored: int
    agreement: float | None


def pseudo_labels(
    probabilities: np.ndarray,
    members: Sequence[np.ndarray],
    labels: LabelManager,
    structures: Structures,
    ignore: int,
    rules: Rules,
) -> PseudoLabels:
    """Label one scan.

    Args:
        probabilities: ``(K, *S)``, the mean of the teachers; of classes, or of regions.
        members: ``(*S)`` each, every teacher's own segmentation.
        labels: nnU-Net's, of the heads.
        structures: name to value, or to values of a region, without background.
        ignore: value for voxels of which the teachers are not sure.
        rules: when they are.

    Raises:
        ValueError: where a probability is not a number.
    """
    if not np.isfinite(probabilities).all():
        raise ValueError("the teacher's probabilities are not numbers")
    segmentation = as_segmentation(probabilities, labels)
    sure = _confidence(probabilities, labels.has_regions) >= rules.confidence
    if len(members) > 1:
        votes = np.mean([member == segmentation for member in members], axis=0, dtype=np.float32)
        sure &= votes >= rules.votes - 1e-6
    return PseudoLabels(
        segmentation=np.where(sure, segmentation, segmentation.dtype.type(ignore)),
        voxels={name: int(np.isin(segmentation, values).sum()) for name, values in structures.items()},
        ignored=int((~sure).sum()),
        agreement=_agreement(segmentation, members, structures) if len(members) > 1 else None,
    )


def as_segmentation(probabilities: np.ndarray, labels: LabelManager) -> np.ndarray:
    """nnU-Net's labels ``(*S)`` of probabilities ``(K, *S)``."""
    found: torch.Tensor = labels.convert_probabilities_to_segmentation(torch.from_numpy(probabilities))
    return found.numpy().astype(np.uint8 if max(labels.foreground_labels) < 255 else np.uint16)


def _confidence(probabilities: np.ndarray, has_regions: bool) -> np.ndarray:
    """How sure the mean is of every voxel's label: of regions, of the one that it is least sure of."""
    if not has_regions:
        return probabilities.max(0)
    return np.maximum(probabilities, 1 - probabilities).min(0)


def _agreement(segmentation: np.ndarray, members: Sequence[np.ndarray], structures: Structures) -> float:
    """Mean over teachers, and over the structures that a teacher or the mean sees. Where none sees any they agree."""
    values = [
        float(2 * (one & other).sum() / (one.sum() + other.sum()))
        for member in members
        for structure in structures.values()
        if (one := np.isin(member, structure)).any() | (other := np.isin(segmentation, structure)).any()
    ]
    return float(np.mean(values)) if values else 1.0
