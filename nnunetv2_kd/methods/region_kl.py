"""Region-balanced KL (ours): the divergence of two predictions, averaged within each region."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from nnunetv2_kd.methods.method import Method, Needs, Temperature
from nnunetv2_kd.methods.step import Step
from nnunetv2_kd.methods.voxel_kl import divergence
from nnunetv2_kd.regions import Regions


def region_kl(
    student: Tensor,
    teacher: Tensor,
    regions: Regions | None = None,
    temperature: float = 1.0,
    sigmoid: bool = False,
) -> Tensor:
    """Region-balanced KL (ours): `divergence` averaged *within* each region, then over the regions that are present.

    Most voxels of a medical patch are background, and the plain mean over voxels mostly rewards agreeing there.

    Args:
        student, teacher: logits ``(B, K, *S)``.
        regions: from the labels, at the grid of the logits. None: the teacher's own soft prediction, which also
            covers voxels without a label.
        temperature: ``T > 0``.
        sigmoid: whether the heads are overlapping regions.

    Returns:
        Scalar, at least 0; 0 if no region is present. Regions are pooled over the batch. A region of less than one
        voxel is weighted by its mass: the teacher's soft prediction of an absent class is never exactly 0, and must not
        weigh as much as a present class.
    """
    kl = divergence(student, teacher, temperature, sigmoid)
    if regions is None:
        weights = soft_membership(teacher, sigmoid)
        dims = (0, *range(2, weights.ndim))
        mass, sums = weights.sum(dim=dims), (weights * kl.unsqueeze(1)).sum(dim=dims)
    else:
        mass, sums = regions.mass().sum(dim=0), regions.sums(kl.unsqueeze(1)).sum(dim=(0, 2))
    return (sums / mass.clamp(min=1)).sum() / mass.clamp(max=1).sum().clamp(min=1e-6)


def soft_membership(logits: Tensor, sigmoid: bool) -> Tensor:
    """A network's own prediction as regions: ``(B, K, *S)``, or ``(B, 1 + K, *S)`` with the complement first where the
    heads are overlapping regions; float32 in [0, 1], no gradient."""
    z = logits.detach().float()
    if not sigmoid:
        return z.softmax(dim=1)
    regions = z.sigmoid()
    return torch.cat((1 - regions.amax(dim=1, keepdim=True), regions), dim=1)


class RegionKL(Method):
    """Class probabilities: KL divergence, mean over each region, then over regions, on every supervised head (ours)."""

    name = "region_kl"
    needs = Needs(logits=True)
    counts_ignored_voxels = True  # by default, the regions are the teacher's

    temperature: Temperature = 1.0
    membership: Literal["teacher", "labels"] = Field("teacher", description="whose regions to average within")

    def __call__(self, step: Step) -> Tensor:
        def of_head(z_s: Tensor, z_t: Tensor, y: Tensor) -> Tensor:
            regions = step.regions(y) if self.membership == "labels" else None
            return region_kl(z_s, z_t, regions, self.temperature, step.uses_sigmoid)

        return step.over_heads(of_head)
