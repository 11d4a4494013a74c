"""DIST (arXiv 2205.10536): match correlations, between classes and within a class, rather than values."""

from pydantic import Field
from torch import Tensor

from nnunetv2_kd.methods.method import Method, Needs, Temperature
from nnunetv2_kd.methods.step import Step
from nnunetv2_kd.tensors.shapes import require_equal, valid_voxels


def pearson_distance(student: Tensor, teacher: Tensor, counted: Tensor, dim: int) -> Tensor:
    """``1 - r``, with Pearson's correlation ``r`` along one dimension; 0 where the teacher is constant along it.

    Args:
        student, teacher: of equal shape.
        counted: 1 for entries that count, 0 for others; broadcastable to that shape.
        dim: the dimension.
    """
    count = counted.expand_as(student).sum(dim=dim, keepdim=True).clamp(min=1)

    def centred(x: Tensor) -> Tensor:
        return (x - (x * counted).sum(dim=dim, keepdim=True) / count) * counted

    s, t = centred(student), centred(teacher)
    # as in the authors' code; it also keeps the gradient of a constant student finite
    norms = (s.square().sum(dim=dim) + 1e-8).sqrt() * (t.square().sum(dim=dim) + 1e-8).sqrt()
    return (1 - (s * t).sum(dim=dim) / norms) * (t.abs().amax(dim=dim) > 0)


def dist(
    student: Tensor,
    teacher: Tensor,
    valid: Tensor | None = None,
    temperature: float = 1.0,
    intra: float = 1.0,
    sigmoid: bool = False,
) -> Tensor:
    """``T^2 (inter + intra)``: Pearson distances of the class probabilities between classes at every voxel, and within
    each class over the voxels of the batch, as in the authors' code for dense predictions.

    Ours: only valid voxels count, and sigmoid heads have no part between classes, because overlapping regions do not
    form a distribution.

    Args:
        student, teacher: logits ``(B, K, *S)``.
        valid: ``(B, 1, *S)`` bool, False where the label is to be ignored; None if every voxel counts.
        temperature: ``T > 0``.
        intra: factor on the part within a class, at least 0; the paper uses 1.
        sigmoid: whether the heads are overlapping regions.

    Returns:
        Scalar in [0, ``2 T^2 (1 + intra)``]; 0 if no voxel is valid.
    """
    require_equal(student, teacher, "logits")
    mask = valid_voxels(valid, student).flatten(2).float()
    z_s, z_t = student.float().flatten(2) / temperature, teacher.detach().float().flatten(2) / temperature
    p_s, p_t = (z.sigmoid() if sigmoid else z.softmax(dim=1) for z in (z_s, z_t))
    within = pearson_distance(_by_class(p_s), _by_class(p_t), mask.flatten(), dim=1).mean()
    if sigmoid:
        return temperature**2 * intra * within
    every = mask.new_ones(())
    between = (pearson_distance(p_s, p_t, every, dim=1) * mask[:, 0]).sum() / mask.sum().clamp(min=1)
    return temperature**2 * (between + intra * within)


def _by_class(p: Tensor) -> Tensor:
    """``(B, K, V)`` as ``(K, B * V)``."""
    return p.transpose(0, 1).flatten(1)


class DIST(Method):
    """Correlation of the class probabilities, between classes and within each (DIST), on every supervised head."""

    name = "dist"
    needs = Needs(logits=True)

    temperature: Temperature = 1.0
    intra: float = Field(1.0, gt=0, le=100, description="factor on the part within a class")

    def __call__(self, step: Step) -> Tensor:
        return step.over_heads(
            lambda z_s, z_t, y: dist(z_s, z_t, step.valid(y), self.temperature, self.intra, step.uses_sigmoid)
        )
