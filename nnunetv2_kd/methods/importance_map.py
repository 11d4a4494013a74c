"""Importance maps (IMD) of EMKD, arXiv 2108.09987."""

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunetv2_kd.methods.method import Needs, OnStages
from nnunetv2_kd.methods.step import Step
from nnunetv2_kd.regions import map_at_grid
from nnunetv2_kd.tensors.blockwise import mean_power


def importance_map(features: Tensor) -> Tensor:
    """Where a stage is active: ``A(F) = vec(mean_c F^4) / ||.||_2``.

    Args:
        features: ``(B, C, *S)``.

    Returns:
        ``(B, *S)`` float32, at least 0, of unit length per sample; 0 where the features are all 0.
    """
    energy = mean_power(features, 4)
    # the square of F^4 overflows float32 where F^4 does not; the scale cancels in the normalisation
    flat = energy.flatten(1)
    scale = flat.detach().amax(dim=1, keepdim=True)
    return F.normalize(flat / torch.where(scale > 0, scale, 1), dim=1).view_as(energy)


def importance_map_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """``mean_B ||A(F_s) - A(F_t)||_2^2`` of one stage; EMKD sums it over a low-level and a high-level stage.

    Args:
        student, teacher: features ``(B, C, *S)``; channels may differ. If the grids differ, the student's map is
            resized (linear) to the teacher's.

    Returns:
        Scalar in [0, 2].
    """
    map_s, map_t = importance_map(student), importance_map(teacher.detach())
    if map_s.shape != map_t.shape:
        resized = map_at_grid(map_s, map_t.shape[1:])
        map_s = F.normalize(resized.flatten(1), dim=1).view_as(map_t)
    return (map_s - map_t).square().flatten(1).sum(dim=1).mean()


class ImportanceMap(OnStages):
    """Where a stage is active (EMKD's IMD), sum over the stages."""

    name = "importance_map"
    needs = Needs(features=True)
    counts_ignored_voxels = True

    def __call__(self, step: Step) -> Tensor:
        return step.over_stages(self.stages, importance_map_loss)
