"""Intra-class feature variation (IFVD): Wang et al., "Intra-class Feature Variation Distillation for Semantic
Segmentation", ECCV 2020."""

import torch
from torch import Tensor

from nnunetv2_kd.methods.method import Needs, OnStages
from nnunetv2_kd.methods.step import Step
from nnunetv2_kd.regions import Regions, map_at_grid, region_vectors, unit_vectors
from nnunetv2_kd.tensors.blockwise import mean_power
from nnunetv2_kd.tensors.shapes import require_same_batch


def intra_class_variation(student: Tensor, teacher: Tensor, regions: Regions) -> Tensor:
    """Compare how much each voxel looks like its region: ``mean_v (cos(F_v, r_y(v))_s - cos(F_v, r_y(v))_t)^2``.

    This is the paper's form if every voxel belongs to one region. If a coarse voxel covers several, its value is the
    membership-weighted mean over them, and it counts by the share of it that belongs to any region (ours).

    Args:
        student, teacher: features ``(B, C, *S)`` of one stage; channels may differ. Each network's region vectors are
            pooled at its own grid; if the grids differ, the student's values are resized (linear) to the teacher's.
        regions: of the same batch, at a grid that is a multiple of both.

    Returns:
        Scalar in [0, 4]; voxels are pooled over the batch. 0 if no voxel belongs to a region.
    """
    require_same_batch(student, teacher, "features")
    values_s, inside_s = _likeness(student, regions)
    values_t, inside = _likeness(teacher.detach(), regions)
    if values_s.shape != values_t.shape:
        # voxels outside all regions must not pull their neighbours towards 0
        share = map_at_grid(inside_s, values_t.shape[1:])
        values_s = map_at_grid(values_s * inside_s, values_t.shape[1:]) / torch.where(share > 0, share, 1)
    total = inside.sum()
    return (inside * (values_s - values_t).square()).sum() / torch.where(total > 0, total, 1)


def _likeness(features: Tensor, regions: Regions) -> tuple[Tensor, Tensor]:
    """Each voxel's cosine to its region's vector, 0 if it has no region, and the share of it that lies in any region;
    both ``(B, *S)``."""
    size = features.shape[2:]
    vectors, _ = region_vectors(features, regions)
    ones = vectors.new_ones((*vectors.shape[:2], 1))
    total = regions.spread(ones, size)[:, 0]
    along = regions.project(unit_vectors(vectors, dim=2), features)
    squares = features.shape[1] * mean_power(features, 2)
    alive = (squares > 0) & (total > 0)
    # the square root has no finite gradient at 0
    length = torch.where(alive, squares, 1).sqrt()
    return along / torch.where(alive, length * total, 1), total.clamp(max=1)


class IntraClassVariation(OnStages):
    """How far the features of each voxel are from the mean of its region (IFVD), sum over the stages."""

    name = "intra_class_variation"
    needs = Needs(features=True)

    def __call__(self, step: Step) -> Tensor:
        return step.over_stages(self.stages, lambda f_s, f_t: intra_class_variation(f_s, f_t, step.regions()))
