"""Class affinity (CAKD) of LCOV-Net's distillation, doi 10.1109/TMI.2023.3262680."""

import torch.nn.functional as F
from torch import Tensor

from nnunetv2_kd.methods.method import Method, Needs
from nnunetv2_kd.methods.step import Step
from nnunetv2_kd.tensors.blockwise import over_voxels
from nnunetv2_kd.tensors.shapes import require_equal, valid_voxels


def class_affinity(student: Tensor, teacher: Tensor, valid: Tensor | None = None, sigmoid: bool = False) -> Tensor:
    """Compare which classes the networks confuse: ``1 - mean_{b,k} cos(G_s[k], G_t[k])``, ``G = P P^T``.

    ``P`` holds the class probabilities of all voxels ``(K, V)``. The authors' code is ``-mean cos`` between columns,
    which equal the rows of these symmetric matrices. The 1 changes no gradient and makes the value 0 when both agree.
    Using valid voxels only, sigmoid heads, and leaving out classes that the teacher does not predict at all are ours.

    Args:
        student, teacher: logits ``(B, K, *S)``.
        valid: ``(B, 1, *S)`` bool, False where the label is to be ignored; None if every voxel counts.
        sigmoid: whether the heads are overlapping regions.

    Returns:
        Scalar in [0, 1], 0 if no voxel is valid.
    """
    require_equal(student, teacher, "logits")
    mask = valid_voxels(valid, student)
    rows_s, _ = _rows(student, mask, sigmoid)
    rows_t, present = _rows(teacher.detach(), mask, sigmoid)
    cosines = (rows_s * rows_t).sum(dim=2)
    return ((1 - cosines) * present).sum() / present.sum().clamp(min=1)


def _rows(logits: Tensor, mask: Tensor, sigmoid: bool) -> tuple[Tensor, Tensor]:
    """The rows of ``G`` at unit length ``(B, K, K)``, and which classes have one ``(B, K)`` bool."""
    z = logits.float()
    p = ((z.sigmoid() if sigmoid else z.softmax(dim=1)) * mask).flatten(2)
    mass = p.detach().sum(dim=2, keepdim=True)
    # the row of a class with almost no probability would underflow; the scale cancels in the cosine
    rows = over_voxels(p / mass.clamp(min=1e-20), p)
    return F.normalize(rows, dim=2), mass[..., 0] > 1e-20


class ClassAffinity(Method):
    """How much the probabilities of the classes overlap (CAKD), on every supervised head."""

    name = "class_affinity"
    needs = Needs(logits=True)

    def __call__(self, step: Step) -> Tensor:
        return step.over_heads(lambda z_s, z_t, y: class_affinity(z_s, z_t, step.valid(y), step.uses_sigmoid))
