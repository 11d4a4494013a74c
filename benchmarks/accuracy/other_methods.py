"""Ways of teaching that the package does not offer, as methods of one's own: studies/other_methods.yaml and
studies/region_terms.yaml.

All are for exclusive classes (softmax) and for targets without an ignore label, which is what the studies have.
"""

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from nnunetv2_kd.methods import Method, Needs, Step
from nnunetv2_kd.methods.region_kl import region_kl
from nnunetv2_kd.methods.voxel_kl import voxel_kl
from nnunetv2_kd.regions import Labels


def decoupled_kd(
    student: Tensor, teacher: Tensor, target: Tensor, alpha: float = 1.0, beta: float = 2.0, temperature: float = 4.0
) -> Tensor:
    """``T^2 mean_v (alpha KL(b_t || b_s) + beta KL(q_t || q_s))``, Zhao et al., arXiv 2203.08679.

    ``b`` is the distribution over "target class or not", ``q`` the softmax over the other classes.

    Args:
        student, teacher: logits ``(B, K, *S)``, at least two classes.
        target: class indices ``(B, 1, *S)``.
        alpha, beta: at least 0.
        temperature: ``T > 0``.

    Returns:
        Scalar, at least 0.
    """
    is_target = F.one_hot(target[:, 0].long(), student.shape[1]).movedim(-1, 1).bool()
    z_s, z_t = student.float() / temperature, teacher.detach().float() / temperature
    pairs = []
    for z in (z_s, z_t):
        log_p, others = z.log_softmax(dim=1), z.masked_fill(is_target, -1e30)
        log_target = log_p.masked_fill(~is_target, 0).sum(dim=1)
        log_rest = log_p.masked_fill(is_target, -1e30).logsumexp(dim=1)
        pairs.append((log_target, log_rest, others.log_softmax(dim=1)))
    (s_target, s_rest, s_others), (t_target, t_rest, t_others) = pairs
    of_target = t_target.exp() * (t_target - s_target) + t_rest.exp() * (t_rest - s_rest)
    of_others = (t_others.exp() * (t_others - s_others)).sum(dim=1)
    return temperature**2 * (alpha * of_target + beta * of_others).mean()


def standardised(logits: Tensor) -> Tensor:
    """Logits ``(B, K, *S)`` with mean 0 and standard deviation 1 over the classes of every voxel, Sun et al., arXiv
    2403.01427."""
    logits = logits.float()
    mean = logits.mean(dim=1, keepdim=True)
    return (logits - mean) / (logits.std(dim=1, keepdim=True, correction=0) + 1e-7)


def boundary_kl(student: Tensor, teacher: Tensor, target: Tensor, width: int = 2) -> Tensor:
    """`region_kl` of other regions (ours): the part of a class that is at most ``width`` voxels from another class is
    one region, the rest of the class another.

    Args:
        student, teacher: logits ``(B, K, *S)``, 2D or 3D.
        target: class indices ``(B, 1, *S)``.
        width: voxels, at least 1; distances are along the axes and diagonals alike.

    Returns:
        Scalar, at least 0. Regions are pooled over the batch.
    """
    classes = student.shape[1]
    of_class = F.one_hot(target[:, 0].long(), classes).movedim(-1, 1).float()
    pool = F.max_pool2d if target.ndim == 4 else F.max_pool3d
    near = pool(of_class, 2 * width + 1, stride=1, padding=width).sum(dim=1, keepdim=True) > 1
    shells = Labels(2 * classes, has_regions=False, ignore_label=None).regions(target + classes * near)
    return region_kl(student, teacher, shells)


class DecoupledKD(Method):
    """Target class and other classes apart (DKD)."""

    name = "decoupled_kd"
    needs = Needs(logits=True)

    alpha: float = Field(1.0, ge=0, description="weight of the target class")
    beta: float = Field(2.0, ge=0, description="weight of the other classes")
    temperature: float = Field(4.0, gt=0, description="of both networks' logits")

    def __call__(self, step: Step) -> Tensor:
        return step.over_heads(lambda z_s, z_t, y: decoupled_kd(z_s, z_t, y, self.alpha, self.beta, self.temperature))


class StandardisedKL(Method):
    """KL divergence of standardised logits at every voxel."""

    name = "standardised_kl"
    needs = Needs(logits=True)

    temperature: float = Field(2.0, gt=0, description="after standardising")

    def __call__(self, step: Step) -> Tensor:
        return step.over_heads(
            lambda z_s, z_t, y: voxel_kl(standardised(z_s), standardised(z_t.detach()), step.valid(y), self.temperature)
        )


class BoundaryKL(Method):
    """KL divergence balanced over the classes' shells and interiors."""

    name = "boundary_kl"
    needs = Needs(logits=True)

    width: int = Field(2, ge=1, description="of the shells on both sides of a boundary, in voxels of each head")

    def __call__(self, step: Step) -> Tensor:
        return step.over_heads(lambda z_s, z_t, y: boundary_kl(z_s, z_t, y, self.width))
