"""Lovász-softmax, arXiv 1705.08790, against a teacher's decision."""

import numpy as np
import torch
from torch import Tensor

from nnunetv2_kd.losses.shapes import require_equal, valid_voxels


def lovasz(student: Tensor, teacher: Tensor, valid: Tensor | None = None, sigmoid: bool = False) -> Tensor:
    """Lovász extension of the Jaccard loss of the student's probabilities against the teacher's hard decision.

    Per class, errors ``e = |y - p|`` in descending order times the increments of the Jaccard loss, voxels pooled over
    the batch, then the mean over the classes present in the decision (source). The decision is the argmax, and with
    sigmoid heads ``p > 0.5``, each head as a class of its own with the same errors (ours; the paper's own binary form
    is a hinge on logits). Taking a teacher's decision for the labels is ours too.

    Args:
        student, teacher: logits ``(B, K, *S)``.
        valid: ``(B, 1, *S)`` bool, False where the label is to be ignored; None where every voxel counts.
        sigmoid: whether the heads are overlapping regions.

    Returns:
        Scalar in [0, 1]. Not 0 where student and teacher are equal, but where the student is *certain* of the teacher's
        decision. 0 where no class is present.
    """
    require_equal(student, teacher, "logits")
    mask = valid_voxels(valid, student)
    z_s, z_t = student.float(), teacher.detach()
    probabilities = z_s.sigmoid() if sigmoid else z_s.softmax(dim=1)
    decision = z_t.max(dim=1).indices  # several times as fast as argmax on the CPU
    total = present = torch.zeros((), device=student.device)
    for k in range(student.shape[1]):
        truth = (z_t[:, k : k + 1] > 0 if sigmoid else (decision == k).unsqueeze(1)) & mask
        # an ignored voxel, without truth and without error, comes last and adds nothing
        errors = (truth.float() - probabilities[:, k : k + 1]).abs() * mask
        here = truth.any().float()
        total = total + here * _extension(errors.flatten(), truth.flatten())
        present = present + here
    return total / present.clamp(min=1)


def _extension(errors: Tensor, truth: Tensor) -> Tensor:
    """``sum_i e_(i) (J_i - J_(i-1))`` over errors in descending order, ``J_i`` the Jaccard loss with ``i`` wrong."""
    order = _descending(errors.detach())
    truth = truth[order]
    # counted in integers: a patch has more voxels than float32 can tell apart
    hits = truth.cumsum(dim=0, dtype=torch.int32)
    intersection = (hits[-1] - hits).float()
    union = (hits[-1] + (~truth).cumsum(dim=0, dtype=torch.int32)).float()
    # J_i - J_(i-1) in closed form: as a difference of two nearly equal numbers it would be mostly rounding
    increments = torch.where(truth, 1 / union.clamp(min=1), intersection / (union * (union - 1)).clamp(min=1))
    return (errors * torch.empty_like(increments).scatter_(0, order, increments)).sum()


def _descending(values: Tensor) -> Tensor:
    """The order that sorts a vector, largest first. On the CPU NumPy's sort is several times as fast as torch's."""
    if values.device.type == "cpu":
        return torch.from_numpy(np.argsort(-values.numpy()))
    return values.argsort(descending=True)
