"""Lovász-softmax, arXiv 1705.08790, against a teacher's decision."""

import torch
from torch import Tensor

from nnunetv2_kd.methods.method import Method, Needs
from nnunetv2_kd.methods.step import Step
from nnunetv2_kd.tensors.shapes import require_equal, valid_voxels

BITS_OF_ONE = 0x3F800000  # 1.0 in float32


def lovasz(student: Tensor, teacher: Tensor, valid: Tensor | None = None, sigmoid: bool = False) -> Tensor:
    """Lovász extension of the Jaccard loss of the student's probabilities against the teacher's hard decision.

    Per class, the errors ``e = |y - p|`` in descending order times the increments of the Jaccard loss, with voxels
    pooled over the batch; then the mean over the classes present in the decision (source). The decision is the argmax.
    With sigmoid heads it is ``p > 0.5``, and each head is a class of its own with the same errors (ours; the paper's
    binary form is a hinge on logits). Using a teacher's decision as labels is ours too.

    Args:
        student, teacher: logits ``(B, K, *S)``.
        valid: ``(B, 1, *S)`` bool, False where the label is to be ignored; None if every voxel counts.
        sigmoid: whether the heads are overlapping regions.

    Returns:
        Scalar in [0, 1]. It is 0 if the student is *certain* of the teacher's decision, which equal predictions need
        not be; and if no class is present.
    """
    require_equal(student, teacher, "logits")
    mask = None if valid is None else valid_voxels(valid, student).flatten()
    z_s, z_t = student.float(), teacher.detach()
    probabilities = z_s.sigmoid() if sigmoid else z_s.softmax(dim=1)
    decision = z_t.max(dim=1).indices  # several times as fast as argmax on the CPU
    total = present = torch.zeros((), device=student.device)
    for k in range(student.shape[1]):
        truth = (z_t[:, k] > 0 if sigmoid else decision == k).flatten()
        p = probabilities[:, k].flatten()
        if mask is not None:
            truth, p = truth & mask, p * mask  # an ignored voxel, without truth and without error, adds nothing
        total = total + _extension(p, truth)
        present = present + truth.any()
    return total / present.clamp(min=1)


def _extension(p: Tensor, truth: Tensor) -> Tensor:
    """``sum_i e_(i) (J_i - J_(i-1))`` over errors ``e = |y - p|`` in descending order, with ``J_i`` the Jaccard loss if
    the first ``i`` voxels are wrong; 0 if no voxel is true.

    Args:
        p: ``(V,)`` in [0, 1].
        truth: ``(V,)`` bool.
    """
    errors = (truth.float() - p).abs()
    order = _descending(errors.detach())
    # not truth[order], which takes ten times as long on the CPU
    truth = truth.index_select(0, order)
    # integers, because a patch may have more voxels than float32 can count
    hits = truth.cumsum(dim=0, dtype=torch.int32)
    intersection = (hits[-1] - hits).float()
    union = (hits[-1] + (~truth).cumsum(dim=0, dtype=torch.int32)).float()
    # J_i - J_(i-1) in closed form: as a difference of two nearly equal numbers it would be mostly rounding
    increments = torch.where(truth, 1 / union.clamp(min=1), intersection / (union * (union - 1)).clamp(min=1))
    return (errors * torch.empty_like(increments).scatter_(0, order, increments)).sum()


def _descending(errors: Tensor) -> Tensor:
    """Indices that sort errors ``(V,)`` in [0, 1], largest first.

    On the CPU, NumPy sorts 64-bit integers several times as fast as any argsort. Each integer holds the error in its
    upper half (the bits of a float that is not negative sort as its value does) and the index in its lower half.
    """
    if errors.device.type != "cpu":
        return errors.argsort(descending=True)
    keys = (BITS_OF_ONE - errors.view(torch.int32)).long().bitwise_left_shift_(32)
    keys.bitwise_or_(torch.arange(len(keys)))
    keys.numpy().sort()
    return keys.bitwise_and_(2**32 - 1)


class Lovasz(Method):
    """The student's probabilities with the teacher's decision: Lovász-softmax, on every supervised head."""

    name = "lovasz"
    needs = Needs(logits=True)
    value_when_identical = None  # 0 only where both are certain

    def __call__(self, step: Step) -> Tensor:
        return step.over_heads(lambda z_s, z_t, y: lovasz(z_s, z_t, step.valid(y), step.uses_sigmoid))
