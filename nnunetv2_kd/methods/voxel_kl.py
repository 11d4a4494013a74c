"""KL divergence of the logits at every voxel."""

import torch.nn.functional as F
from torch import Tensor

from nnunetv2_kd.methods.method import Method, Needs, Temperature
from nnunetv2_kd.methods.step import Step


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
        valid: ``(B, 1, *S)`` bool, False where the label is to be ignored; None if every voxel counts.
        temperature: ``T > 0``; EMKD uses 4.
        sigmoid: whether the heads are overlapping regions.

    Returns:
        Scalar, at least 0; 0 if no voxel is valid.

    >>> import torch
    >>> undecided, certain = torch.zeros(1, 2, 1, 1), torch.tensor([50.0, -50.0]).view(1, 2, 1, 1)
    >>> voxel_kl(undecided, certain)  # log 2
    tensor(0.6931)
    """
    kl = divergence(student, teacher, temperature, sigmoid)
    if valid is None:
        return kl.mean()
    mask = valid[:, 0].float()
    return (kl * mask).sum() / mask.sum().clamp(min=1)


class VoxelKL(Method):
    """Class probabilities: KL divergence, mean over voxels, on every supervised head (Hinton et al.)."""

    name = "voxel_kl"
    needs = Needs(logits=True)

    temperature: Temperature = 1.0

    def __call__(self, step: Step) -> Tensor:
        return step.over_heads(
            lambda z_s, z_t, y: voxel_kl(z_s, z_t, step.valid(y), self.temperature, step.uses_sigmoid)
        )
