"""Terms on the logits of one segmentation head."""

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunetv2_kd.losses.regions import Regions


def divergence(student: Tensor, teacher: Tensor, temperature: float, sigmoid: bool) -> Tensor:
    """Kullback-Leibler divergence of the student's from the teacher's prediction at every voxel, times ``T^2``.

    ``T^2 sum_k p_t (log p_t - log p_s)`` with ``p = softmax(z / T)``, *summed* over classes (Hinton et al.,
    arXiv 1503.02531). With sigmoid heads: the sum over regions of the Bernoulli divergence, same scaling.

    Args:
        student, teacher: logits ``(B, K, *S)`` of any floating dtype; computed in float32.
        temperature: ``T > 0``.
        sigmoid: whether the heads are overlapping regions and not exclusive classes.

    Returns:
        ``(B, *S)`` float32, at least 0.
    """
    if student.shape != teacher.shape:
        raise ValueError(f"expected logits of equal shape, got {tuple(student.shape)} and {tuple(teacher.shape)}")
    z_s, z_t = student.float() / temperature, teacher.detach().float() / temperature
    if sigmoid:
        p_t = z_t.sigmoid()
        on = p_t * (F.logsigmoid(z_t) - F.logsigmoid(z_s))
        off = (1 - p_t) * (F.logsigmoid(-z_t) - F.logsigmoid(-z_s))
        per_class = on + off
    else:
        log_p_t = z_t.log_softmax(dim=1)
        per_class = log_p_t.exp() * (log_p_t - z_s.log_softmax(dim=1))
    return temperature**2 * per_class.sum(dim=1)


def voxel_kl(
    student: Tensor, teacher: Tensor, valid: Tensor | None = None, temperature: float = 1.0, sigmoid: bool = False
) -> Tensor:
    """Mean over valid voxels of `divergence` (Hinton et al.; "prediction-map distillation" of EMKD, arXiv 2108.09987).

    Args:
        student, teacher: logits ``(B, K, *S)``.
        valid: ``(B, 1, *S)`` bool, False where the label is to be ignored; None where every voxel counts.
        temperature: ``T > 0``; EMKD uses 4.
        sigmoid: whether the heads are overlapping regions.

    Returns:
        Scalar, at least 0; 0 where no voxel is valid.
    """
    kl = divergence(student, teacher, temperature, sigmoid)
    if valid is None:
        return kl.mean()
    mask = valid[:, 0].float()
    return (kl * mask).sum() / mask.sum().clamp(min=1)


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
        Scalar, at least 0; 0 where no region is present. Regions are pooled over the batch. A region whose mass is
        below one voxel counts by its mass only: the teacher's soft prediction of an absent class is never exactly 0,
        and must not weigh as much as a present one.
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
