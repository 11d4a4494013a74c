"""Soft Dice between two networks' predictions."""

from torch import Tensor

from nnunetv2_kd.methods.method import Method, Needs
from nnunetv2_kd.methods.step import Step
from nnunetv2_kd.tensors.shapes import require_equal, valid_voxels


def soft_dice(student: Tensor, teacher: Tensor, valid: Tensor | None = None, sigmoid: bool = False) -> Tensor:
    """One minus the Dice of student's and teacher's probabilities, mean over the foreground classes.

    ``1 - 2 sum_v p_s p_t / (sum_v p_s^2 + sum_v p_t^2)`` per class, voxels pooled over the batch. The squares (V-Net,
    arXiv 1606.04797) make it 0 when both agree, which sums of ``p`` do not. Its use between two soft predictions for
    distillation is ours.

    Args:
        student, teacher: logits ``(B, K, *S)``.
        valid: ``(B, 1, *S)`` bool, False where the label is to be ignored; None if every voxel counts.
        sigmoid: whether the heads are overlapping regions; then every head counts, and otherwise all but class 0.

    Returns:
        Scalar in [0, 1]. A class to which the teacher gives less than one voxel is weighted by its mass; so is the
        whole term if all classes together have less than one voxel.

    >>> import torch
    >>> certain = torch.tensor([[[[-50.0, 50.0]], [[50.0, -50.0]]]])  # class 1 at the first of two voxels
    >>> soft_dice(certain, certain), soft_dice(-certain, certain)
    (tensor(0.), tensor(1.))
    """
    require_equal(student, teacher, "logits")
    mask = valid_voxels(valid, student)
    p_s, p_t = _foreground(student, sigmoid) * mask, _foreground(teacher.detach(), sigmoid) * mask
    dims = (0, *range(2, p_s.ndim))
    # avoids 0 / 0 where neither network predicts a class at all
    squares = (p_s.square() + p_t.square()).sum(dim=dims).clamp(min=1e-20)
    dice = 2 * (p_s * p_t).sum(dim=dims) / squares
    weights = p_t.sum(dim=dims).clamp(max=1)
    return (weights * (1 - dice)).sum() / weights.sum().clamp(min=1)


def _foreground(logits: Tensor, sigmoid: bool) -> Tensor:
    z = logits.float()
    return z.sigmoid() if sigmoid else z.softmax(dim=1)[:, 1:]


class SoftDice(Method):
    """Soft Dice between the probabilities of the two networks, on every supervised head."""

    name = "soft_dice"
    needs = Needs(logits=True)

    def __call__(self, step: Step) -> Tensor:
        return step.over_heads(lambda z_s, z_t, y: soft_dice(z_s, z_t, step.valid(y), step.uses_sigmoid))
