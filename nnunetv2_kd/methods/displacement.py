"""Displacements between the samples of a batch (DPRD, MICCAI 2026)."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from nnunetv2_kd.errors import KDError
from nnunetv2_kd.methods.adapters import module_key, pointwise, require_same_stages
from nnunetv2_kd.methods.method import Needs, OnStages
from nnunetv2_kd.methods.step import Step
from nnunetv2_kd.regions import Regions, at_grid
from nnunetv2_kd.tensors.shapes import require_same_batch

SIX_STAGES = (0.05, 0.10, 0.10, 0.15, 0.25, 0.35)


def stage_weights(count: int) -> tuple[float, ...]:
    """Weights of the stages from full resolution down, with sum 1: the paper's for six stages, otherwise a linear ramp
    (ours).

    >>> [round(weight, 3) for weight in stage_weights(3)]
    [0.167, 0.333, 0.5]
    """
    if count == len(SIX_STAGES):
        return SIX_STAGES
    return tuple(2 * (k + 1) / (count * (count + 1)) for k in range(count))


def foreground_cells(features: Tensor, foreground: Tensor, size: tuple[int, ...]) -> Tensor:
    """Mean feature vector of the foreground in every cell of a coarse grid (source).

    Args:
        features: ``(B, C, *S)``.
        foreground: ``(B, 1, *S)`` in [0, 1].
        size: cells along each axis.

    Returns:
        ``(B, C, *size)`` float32; a cell without foreground is 0.
    """
    share = at_grid(foreground, size)
    return at_grid(features.float() * foreground, size) / torch.where(share > 0, share, 1)


def displacement_difference(student: Tensor, teacher: Tensor, ratio: float = 1.0) -> Tensor:
    """Compare how two networks place the samples of a batch relative to one another (source).

    ``d_ij = (e_i - e_j) / mean ||e_i - e_j||`` for every pair ``i < j``: Smooth-L1 between student's and teacher's
    ``d``, summed over dimensions, plus ``ratio`` times Smooth-L1 between their lengths, averaged over the pairs.

    Args:
        student, teacher: one embedding per sample ``(B, D)``.
        ratio: weight of the lengths, at least 0.

    Returns:
        Scalar, at least 0. A batch of one has no pair and gives 0. A batch of two has a single pair, whose length is 1
        in both networks, so that only the directions count.
    """
    if student.shape != teacher.shape:
        raise ValueError(f"expected embeddings of equal shape, got {tuple(student.shape)} and {tuple(teacher.shape)}")
    d_s, d_t = _displacements(student.float()), _displacements(teacher.detach().float())
    directions = F.smooth_l1_loss(d_s, d_t, reduction="sum")
    lengths = F.smooth_l1_loss(d_s.norm(dim=1), d_t.norm(dim=1), reduction="sum")
    return (directions + ratio * lengths) / max(len(d_s), 1)


class DisplacementLoss(nn.Module):
    """`displacement_difference` of the foreground's features, weighted over stages (source).

    A sample's embedding is its `foreground_cells`, flattened; it is 0 without foreground. A 1x1 convolution adapts the
    student's channels where their number differs. It runs on the cells, which is the same as on the features because it
    has no bias. The adapters have parameters, which must be optimised.

    Args:
        student_channels, teacher_channels: number of channels of every stage by its name, from full resolution down.
        dims: 2 or 3 spatial dimensions.
        grid: cells along each axis, fewer where a stage has fewer voxels.
        ratio: weight of the lengths (the paper's lambda), at least 0.
    """

    def __init__(
        self,
        student_channels: Mapping[str, int],
        teacher_channels: Mapping[str, int],
        dims: int,
        grid: int = 4,
        ratio: float = 1.0,
    ) -> None:
        super().__init__()
        require_same_stages(student_channels, teacher_channels)
        self.stages = tuple(student_channels)
        self.grid = grid
        self.ratio = ratio
        self.adapters = nn.ModuleDict(
            {
                module_key(s): pointwise(student_channels[s], teacher_channels[s], dims)
                for s in self.stages
                if student_channels[s] != teacher_channels[s]
            }
        )

    def forward(self, features_s: Mapping[str, Tensor], features_t: Mapping[str, Tensor], regions: Regions) -> Tensor:
        """
        Args:
            features_s, features_t: ``(B, C, *S)`` by stage; channels and grids may differ.
            regions: of the same batch, region 0 the background, at least as fine as every stage's grid.

        Returns:
            Scalar, at least 0; 0 if the batch is one sample or has no foreground.
        """
        foreground = regions.foreground()
        terms = [
            weight * self._stage(stage, features_s[stage], features_t[stage], foreground)
            for weight, stage in zip(stage_weights(len(self.stages)), self.stages, strict=True)
        ]
        return torch.stack(terms).sum()

    def _stage(self, stage: str, student: Tensor, teacher: Tensor, foreground: Tensor) -> Tensor:
        require_same_batch(student, teacher, f"features of {stage}")
        require_same_batch(teacher, foreground, "features and regions")
        size = tuple(min(self.grid, s, t) for s, t in zip(student.shape[2:], teacher.shape[2:], strict=True))
        cells_s = foreground_cells(student, at_grid(foreground, student.shape[2:]), size)
        cells_t = foreground_cells(teacher.detach(), at_grid(foreground, teacher.shape[2:]), size)
        if module_key(stage) in self.adapters:
            cells_s = self.adapters[module_key(stage)](cells_s)
        return displacement_difference(cells_s.flatten(1), cells_t.flatten(1), self.ratio)


def _displacements(embeddings: Tensor) -> Tensor:
    """Every pair's displacement, divided by their mean length: ``(B (B - 1) / 2, D)``; 0 if all samples coincide."""
    first, second = torch.triu_indices(len(embeddings), len(embeddings), offset=1, device=embeddings.device)
    pairs = embeddings[first] - embeddings[second]
    mean = pairs.norm(dim=1).sum() / max(len(pairs), 1)
    return pairs / torch.where(mean > 0, mean, 1)


class Displacement(OnStages):
    """How the samples of a batch differ from each other (DPRD), sum over encoder stages, with weights that
    grow with depth."""

    name = "displacement"
    needs = Needs(features=True)

    stages: tuple[str, ...] = Field(("encoder.:",), min_length=1, description="stages that are compared")
    grid: int = Field(4, ge=1, le=32, description="cells per axis to which the features are averaged")
    ratio: float = Field(1.0, ge=0, description="factor on the part that compares lengths")

    def trained_part(self, channels_s: Mapping[str, int], channels_t: Mapping[str, int], dims: int) -> nn.Module:
        return DisplacementLoss(channels_s, channels_t, dims, self.grid, self.ratio)

    def check_batch(self, batch_size: int) -> list[str]:
        if batch_size < 2:
            raise KDError(
                "displacement compares samples of a batch and needs at least two; this batch size is 1. Give the plans "
                "a larger one: nnUNetv2_kd plan ... --batch-size 4"
            )
        if batch_size > 2:
            return []
        return [
            "WARNING: displacement: a batch of two has a single pair of samples, so the part that compares lengths is "
            "always 0. A larger batch lets it count: nnUNetv2_kd plan ... --batch-size 4"
        ]

    def __call__(self, step: Step) -> Tensor:
        return step.trained_part(self.name)(*step.stage_features(self.stages), step.regions())
