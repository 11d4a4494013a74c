"""Feature filtering (FFD), guided by the abstract of MSKD, doi 10.1016/j.compbiomed.2023.107284. The formulas are ours:
the paper's are not public."""

from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from nnunetv2_kd.methods.method import Needs, OnStages
from nnunetv2_kd.methods.step import Step
from nnunetv2_kd.regions import Regions, map_at_grid
from nnunetv2_kd.tensors.blockwise import channel_blocks, in_float32, over_voxels
from nnunetv2_kd.tensors.shapes import require_same_batch


def activation_map(features: Tensor, inside: Tensor | None = None) -> Tensor:
    """Where a stage is active: channels weighted by their mean activity and summed, standardised per sample (ours).

    ``a(F) = sum_c w_c ReLU(F)_c`` with ``w = softmax_c(mean_v ReLU(F))``, minus its mean, over its standard deviation.

    Args:
        features: ``(B, C, *S)``.
        inside: ``(B, *S)`` in [0, 1], how much each voxel counts in the means; None if all count fully.

    Returns:
        ``(B, *S)`` float32 of mean 0 and variance 1 over the voxels that count; 0 if no voxel counts and where the
        map is constant.
    """
    counted = features.new_ones((len(features), *features.shape[2:]), dtype=torch.float32) if inside is None else inside
    return _standardise(_ActiveChannels.apply(features, counted), counted)


def feature_filtering(student: Tensor, teacher: Tensor, regions: Regions, gamma: float = 1.0) -> Tensor:
    """Squared difference of activation maps, weighted most where the teacher's is far from its mean (FFD; ours).

    Per region the mean of ``(a_s - a_t)^2`` weighted by ``u = exp(gamma |2 sigmoid(a_t) - 1|)`` and the membership,
    then the mean over the present regions of all samples, so that a small organ weighs as much as the background.
    Normalising ``u`` to a mean of 1 would change nothing: its scale cancels in a weighted mean.

    Args:
        student, teacher: features ``(B, C, *S)`` of one stage; channels may differ. If the grids differ, the
            student's map is resized (linear) to the teacher's.
        regions: of the same batch, at a grid that is a multiple of both.
        gamma: above 0; a voxel far from the teacher's mean counts up to ``exp(gamma)`` times as much as one at it.

    Returns:
        Scalar, at least 0; 0 if no region is present.
    """
    if gamma <= 0:
        raise ValueError(f"expected gamma above 0, got {gamma}")
    require_same_batch(student, teacher, "features")
    require_same_batch(teacher, regions.codes.unsqueeze(1), "features and regions")
    inside = regions.inside(teacher.shape[2:])
    map_t = activation_map(teacher.detach(), inside)
    map_s = activation_map(student, regions.inside(student.shape[2:]))
    if map_s.shape != map_t.shape:
        map_s = _standardise(map_at_grid(map_s, map_t.shape[1:]), inside)
    weights = (gamma * (2 * map_t.sigmoid() - 1).abs()).exp()
    squares, mass = regions.sums(torch.stack((weights * (map_s - map_t).square(), weights), dim=1)).unbind(dim=2)
    present = mass > 0
    return (squares / torch.where(present, mass, 1)).sum() / present.sum().clamp(min=1)


def _standardise(maps: Tensor, inside: Tensor) -> Tensor:
    flat, counted = maps.flatten(1), inside.flatten(1)
    total = counted.sum(dim=1, keepdim=True)
    total = torch.where(total > 0, total, 1)
    centred = flat - (counted * flat).sum(dim=1, keepdim=True) / total
    variance = (counted * centred.square()).sum(dim=1, keepdim=True) / total
    # 1e-5 as in normalisation layers: without it, a constant map has no finite gradient
    standardised = centred / (variance + 1e-5).sqrt()
    return (standardised * (counted > 0)).view_as(maps)


class _ActiveChannels(torch.autograd.Function):
    """``sum_c w_c ReLU(F)_c``, ``w = softmax_c`` of the mean of ``ReLU(F)_c`` over the voxels that count.

    ``ReLU(F)`` is computed again in every pass over the features, a few channels at a time. Stored, it would be a full
    copy of the features, which takes longer to write than to compute.
    """

    @staticmethod
    def forward(ctx: Any, features: Tensor, counted: Tensor) -> Tensor:
        total = counted.flatten(1).sum(dim=1)
        shares = counted.flatten(1) / torch.where(total > 0, total, 1).unsqueeze(1)
        pooled = _dots(features, shares)
        weights = pooled.softmax(dim=1)
        maps = torch.zeros_like(shares)
        for samples, channels in channel_blocks(features):
            maps[samples].unsqueeze(1).baddbmm_(
                weights[samples, channels].unsqueeze(1), _active(features[samples, channels])
            )
        ctx.save_for_backward(features, shares, weights)
        return maps.view_as(counted)

    @staticmethod
    @in_float32
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        features, shares, weights = ctx.saved_tensors
        gradient = gradient.flatten(1).contiguous()
        of_weights = _dots(features, gradient)
        of_pooled = weights * (of_weights - (weights * of_weights).sum(dim=1, keepdim=True))
        of_features = torch.empty_like(features)
        for samples, channels in channel_blocks(features):
            part = features[samples, channels]
            of_active = weights[samples, channels].unsqueeze(2) * gradient[samples].unsqueeze(1)
            of_active.addcmul_(of_pooled[samples, channels].unsqueeze(2), shares[samples].unsqueeze(1))
            # several times as fast as multiplying by a mask
            of_features[samples, channels] = torch.ops.aten.threshold_backward(
                of_active.view(part.shape).to(part.dtype), part, 0
            )
        return of_features, None


def _active(features: Tensor) -> Tensor:
    """``ReLU(F)`` of some channels, ``(B, C, V)`` float32."""
    return features.float().relu().flatten(2)


def _dots(features: Tensor, maps: Tensor) -> Tensor:
    """``sum_v ReLU(F)_c maps`` of every channel, ``(B, C)``, for maps ``(B, V)``."""
    dots = maps.new_empty(features.shape[:2])
    for samples, channels in channel_blocks(features):
        dots[samples, channels] = over_voxels(_active(features[samples, channels]), maps[samples].unsqueeze(1))[..., 0]
    return dots


class FeatureFiltering(OnStages):
    """Where a stage is active, region by region, weighted by how certain the teacher is (MSKD's FFD)."""

    name = "feature_filtering"
    needs = Needs(features=True)

    gamma: float = Field(1.0, gt=0, le=10, description="how much more voxels count at which the teacher is certain")

    def __call__(self, step: Step) -> Tensor:
        return step.over_stages(self.stages, lambda f_s, f_t: feature_filtering(f_s, f_t, step.regions(), self.gamma))
