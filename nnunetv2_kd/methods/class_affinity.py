"""Class affinity (CAKD) of LCOV-Net's distillation, doi 10.1109/TMI.2023.3262680."""

import torch.nn.functional as F
from torch import Tensor

from nnunetv2_kd.methods.method import Method, Needs
from nnunetv2_kd.methods.step import Step
from nnunetv2_kd.tensors.blockwise import over_voxels
from nnunetv2_kd.tensors.shapes import require_equal, valid_voxels


def class_affinity(student: Tensor, teacher: Tensor, valid: Tensor | None = None, sigmoid: bool = False) -> Tensor:
    """Which classes a network takes for which: ``1 - mean_{b,k} cos(G_s[k], G_t[k])``, ``G = P P^T``.

    ``P`` are the class probabilities over voxels ``(K, V)``. The authors' code is ``-mean cos`` between columns of the
    two symmetric matrices, which are their rows; the 1, with the same gradients, makes it 0 when both agree. Valid
    voxels only, sigmoid heads, and leaving out a class of which the teacher has no trace, are ours.

    Args:
        student, teacher: logits ``(B, K, *S)``.
        valid: ``(B, 1, *S)`` bool, False where the label is to be ignored; None where every voxel counts.
        sigmoid: whether the heads are overlapping regions.

    Returns:
        Scalar in [0, 1], 0 where no voxel is valid.
    """
    require_equal(student, teacher, "logits")
    mask = valid_voxels(valid, student)
    rows_s, _ = _rows(student, mask, sigmoid)
    rows_t, present = _rows(teacher.detach(), mask, sigmoid)
    cosines = (rows_s * rows_t).sum(dim=2)
    return ((1 - cosines) * present).sum() / present.sum().clamp(min=1)


def _rows(logits: Tensor, mask: Tensor, sigmoid: bool) -> tuple[Tensor, Tensor]:
    """The rows of ``G`` at unit length ``(B, K, K)``, and for which classes there is one ``(B, K)``."""
    z = logits.float()
    p = ((z.sigmoid() if sigmoid else z.softmax(dim=1)) * mask).flatten(2)
    mass = p.detach().sum(dim=2, keepdim=True)
    # the row of a class that is nearly nowhere would underflow; the scale cancels in the cosine
    rows = over_voxels(p / mass.clamp(min=1e-20), p)
    return F.normalize(rows, dim=2), mass[..., 0] > 1e-20


class ClassAffinity(Method):
    """How the class probabilities overlap (CAKD), on every supervised head."""

    name = "class_affinity"
    needs = Needs(logits=True)

    def __call__(self, step: Step) -> Tensor:
        return step.over_heads(lambda z_s, z_t, y: class_affinity(z_s, z_t, step.valid(y), step.sigmoid))
