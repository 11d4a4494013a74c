"""Channel-wise distillation (CWD), arXiv 2011.13256, on logits."""

from torch import Tensor

from nnunetv2_kd.methods.method import Method, Needs, Temperature
from nnunetv2_kd.methods.step import Step
from nnunetv2_kd.tensors.shapes import require_equal, valid_voxels


def channel_wise(student: Tensor, teacher: Tensor, valid: Tensor | None = None, temperature: float = 4.0) -> Tensor:
    """Compare where in the image each channel is active: KL of softmaxes over voxels, as in the paper and its code.

    ``T^2 mean_{b,k} sum_v p_t (log p_t - log p_s)`` with ``p = softmax_v(z / T)`` per channel and sample. Only valid
    voxels count (ours). The same formula serves sigmoid heads, because no channel depends on another.

    Args:
        student, teacher: logits ``(B, K, *S)``.
        valid: ``(B, 1, *S)`` bool, False where the label is to be ignored; None if every voxel counts.
        temperature: ``T > 0``; the paper uses 4.

    Returns:
        Scalar, at least 0. A sample without a valid voxel contributes 0.
    """
    require_equal(student, teacher, "logits")
    ignored = ~valid_voxels(valid, student).flatten(2)
    # finite, so that a sample without a valid voxel does not give NaN
    z_s = (student.float().flatten(2) / temperature).masked_fill(ignored, -1e30)
    z_t = (teacher.detach().float().flatten(2) / temperature).masked_fill(ignored, -1e30)
    log_s, log_t = z_s.log_softmax(dim=2), z_t.log_softmax(dim=2)
    return temperature**2 * (log_t.exp() * (log_t - log_s)).sum(dim=2).mean()


class ChannelWise(Method):
    """Where each class is likely: KL divergence over the voxels (CWD on logits), on every supervised head."""

    name = "channel_wise"
    needs = Needs(logits=True)

    temperature: Temperature = 4.0

    def __call__(self, step: Step) -> Tensor:
        return step.over_heads(lambda z_s, z_t, y: channel_wise(z_s, z_t, step.valid(y), self.temperature))
