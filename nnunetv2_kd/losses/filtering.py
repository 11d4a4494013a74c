"""Feature filtering (FFD), guided by the abstract of MSKD, doi 10.1016/j.compbiomed.2023.107284. The formulas are ours:
the paper's are not public."""

import torch
from torch import Tensor

from nnunetv2_kd.losses.regions import at_grid, map_at_grid
from nnunetv2_kd.losses.shapes import require_same_batch


def activation_map(features: Tensor, inside: Tensor | None = None) -> Tensor:
    """Where a stage is active, channels weighed by how active they are, standardised per sample (ours).

    ``a(F) = sum_c w_c ReLU(F)_c`` with ``w = softmax_c(mean_v ReLU(F))``, less its mean, over its standard deviation.

    Args:
        features: ``(B, C, *S)``.
        inside: ``(B, *S)`` in [0, 1], how much each voxel counts in the means; None where all do.

    Returns:
        ``(B, *S)`` float32 of mean 0 and variance 1 over the voxels that count; 0 where no voxel counts and where the
        map is constant.
    """
    active = features.float().relu()
    counted = torch.ones_like(active[:, 0]) if inside is None else inside
    total = counted.flatten(1).sum(dim=1, keepdim=True)
    pooled = (active * counted.unsqueeze(1)).flatten(2).sum(dim=2) / torch.where(total > 0, total, 1)
    return _standardised(torch.einsum("bc,bc...->b...", pooled.softmax(dim=1), active), counted)


def feature_filtering(student: Tensor, teacher: Tensor, membership: Tensor, gamma: float = 1.0) -> Tensor:
    """Squared difference of activation maps, most where the teacher is decided (FFD; ours).

    Per region the mean of ``(a_s - a_t)^2`` weighted by ``u = exp(gamma |2 sigmoid(a_t) - 1|)`` and the membership,
    then the mean over the present regions of all samples, so that a small organ weighs as much as the background. The
    filter's own mean over voxels, by which one may divide it, cancels in a weighted mean.

    Args:
        student, teacher: features ``(B, C, *S)`` of one stage; channels may differ. Where the grids differ, the
            student's map is resized (linear) to the teacher's.
        membership: ``(B, K, *S')`` in [0, 1], ``S'`` at least as fine as both grids.
        gamma: how much more a decided voxel counts than an undecided one, at most ``exp(gamma)`` times; above 0.

    Returns:
        Scalar, at least 0; 0 where no region is present.
    """
    if gamma <= 0:
        raise ValueError(f"expected gamma above 0, got {gamma}")
    require_same_batch(student, teacher, "features")
    require_same_batch(teacher, membership, "features and membership")
    regions = at_grid(membership.float(), teacher.shape[2:])
    inside = regions.sum(dim=1).clamp(max=1)
    map_t = activation_map(teacher.detach(), inside)
    map_s = activation_map(student, at_grid(membership.float(), student.shape[2:]).sum(dim=1).clamp(max=1))
    if map_s.shape != map_t.shape:
        map_s = _standardised(map_at_grid(map_s, map_t.shape[1:]), inside)
    weights = regions * (gamma * (2 * map_t.sigmoid() - 1).abs()).exp().unsqueeze(1)
    mass = weights.flatten(2).sum(dim=2)
    present = mass > 0
    squares = (weights * (map_s - map_t).square().unsqueeze(1)).flatten(2).sum(dim=2)
    return (squares / torch.where(present, mass, 1)).sum() / present.sum().clamp(min=1)


def _standardised(maps: Tensor, inside: Tensor) -> Tensor:
    flat, counted = maps.flatten(1), inside.flatten(1)
    total = counted.sum(dim=1, keepdim=True)
    total = torch.where(total > 0, total, 1)
    centred = flat - (counted * flat).sum(dim=1, keepdim=True) / total
    variance = (counted * centred.square()).sum(dim=1, keepdim=True) / total
    # as in normalisation layers: a constant map has no finite gradient otherwise
    standardised = centred / (variance + 1e-5).sqrt()
    return (standardised * (counted > 0)).view_as(maps)
