"""Turn several teachers' predictions of a scan into labels where they are sure, and measure how well they agree."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from nnunetv2.utilities.label_handling.label_handling import LabelManager

Structures = Mapping[str, int | tuple[int, ...]]


@dataclass(frozen=True)
class Rules:
    """When a voxel gets a label, and a scan is used.

    Attributes:
        confidence: minimum mean probability of a voxel's label, in [0, 1]; with regions, of each region's presence or
            absence.
        votes: minimum share of the teachers, in [0, 1], that must give this label themselves.
        scan_dice: minimum mean Dice, in [0, 1], of the teachers with their mean; scans below it are left out.
    """

    confidence: float
    votes: float
    scan_dice: float

    def ignores(self, teachers: int) -> bool:
        """Whether any voxel may be left without a label."""
        return self.confidence > 0 or (self.votes > 0 and teachers > 1)


@dataclass(frozen=True)
class Member:
    """One teacher of several.

    Attributes:
        segmentation: ``(*S)`` of the dataset's labels, 0 for everything that the teacher does not know.
        known: the structures that the teacher knows.
    """

    segmentation: np.ndarray
    known: Structures


class Mean:
    """The mean of teachers that may know different structures: each structure from those that know it.

    Where probabilities of exclusive structures add up to more than 1, they are divided by their sum (ours), as for
    stored teachers (`teachers.combine.mix_known`).

    Args:
        structures: how many the dataset has.
        sigmoid: whether they are overlapping regions.
    """

    def __init__(self, structures: int, sigmoid: bool) -> None:
        self._sigmoid = sigmoid
        self._counts = np.zeros(structures, dtype=np.float32)
        self._sums: list[np.ndarray | None] = [None] * structures

    def add(self, probabilities: np.ndarray, known: Sequence[int]) -> None:
        """Add one teacher.

        Args:
            probabilities: ``(U, *S)`` of the structures that it knows.
            known: their numbers.
        """
        for number, own in zip(known, probabilities, strict=True):
            before = self._sums[number]
            self._sums[number] = own.copy() if before is None else before + own
            self._counts[number] += 1

    def heads(self) -> np.ndarray:
        """Probabilities ``(K, *S)`` of nnU-Net's heads, float32; a structure that no teacher knows has 0."""
        there = next(found for found in self._sums if found is not None)
        nothing = np.zeros_like(there)
        counts = self._counts.clip(min=1)
        mean = np.stack([(nothing if s is None else s) / n for s, n in zip(self._sums, counts, strict=True)])
        if self._sigmoid:
            return mean.astype(np.float32)
        mean /= mean.sum(0, keepdims=True).clip(min=1)
        return np.concatenate(((1 - mean.sum(0, keepdims=True)).clip(min=0), mean)).astype(np.float32)


@dataclass(frozen=True)
class PseudoLabels:
    """Labels of one scan.

    Attributes:
        segmentation: ``(*S)`` of nnU-Net's labels, with the ignore label where the teachers are not sure.
        voxels: number of voxels of each structure, before any were ignored.
        ignored: number of ignored voxels.
        agreement: mean Dice of the teachers with their mean, in [0, 1]; None for a single teacher.
    """

    segmentation: np.ndarray
    voxels: dict[str, int]
    ignored: int
    agreement: float | None


def pseudo_labels(
    probabilities: np.ndarray,
    members: Sequence[Member],
    labels: LabelManager,
    structures: Structures,
    ignore: int,
    rules: Rules,
) -> PseudoLabels:
    """Label one scan.

    Args:
        probabilities: ``(K, *S)``, the mean of the teachers; of classes, or of regions.
        members: every teacher's own segmentation.
        labels: nnU-Net's label manager for the heads.
        structures: the value, or the values of a region, by name; without background.
        ignore: value for voxels where the teachers are not sure.
        rules: when they are sure.

    Raises:
        ValueError: if a probability is not a number.
    """
    if not np.isfinite(probabilities).all():
        raise ValueError("the teacher's probabilities are not numbers")
    segmentation = as_segmentation(probabilities, labels)
    sure = _confidence(probabilities, labels.has_regions) >= rules.confidence
    if len(members) > 1:
        votes = np.mean([_same(member, segmentation) for member in members], axis=0, dtype=np.float32)
        sure &= votes >= rules.votes - 1e-6
    return PseudoLabels(
        segmentation=np.where(sure, segmentation, segmentation.dtype.type(ignore)),
        voxels={name: int(np.isin(segmentation, values).sum()) for name, values in structures.items()},
        ignored=int((~sure).sum()),
        agreement=_agreement(segmentation, members) if len(members) > 1 else None,
    )


def as_segmentation(probabilities: np.ndarray, labels: LabelManager) -> np.ndarray:
    """nnU-Net's labels ``(*S)`` of probabilities ``(K, *S)``."""
    found: torch.Tensor = labels.convert_probabilities_to_segmentation(torch.from_numpy(probabilities))
    return found.numpy().astype(np.uint8 if max(labels.foreground_labels) < 255 else np.uint16)


def _confidence(probabilities: np.ndarray, has_regions: bool) -> np.ndarray:
    """How sure the mean is of every voxel's label; with regions, of the one that it is least sure of."""
    if not has_regions:
        return probabilities.max(0)
    return np.maximum(probabilities, 1 - probabilities).min(0)


def _same(member: Member, segmentation: np.ndarray) -> np.ndarray:
    """Where a teacher gives the same label ``(*S)``, comparing only structures that it knows."""
    found = np.ones(segmentation.shape, dtype=bool)
    for values in member.known.values():
        found &= np.isin(member.segmentation, values) == np.isin(segmentation, values)
    return found


def _agreement(segmentation: np.ndarray, members: Sequence[Member]) -> float:
    """Mean Dice over teachers and the structures that each knows, if found by it or by the mean. If nothing is found,
    they agree."""
    values = [
        float(2 * (one & other).sum() / (one.sum() + other.sum()))
        for member in members
        for structure in member.known.values()
        if (one := np.isin(member.segmentation, structure)).any() | (other := np.isin(segmentation, structure)).any()
    ]
    return float(np.mean(values)) if values else 1.0
