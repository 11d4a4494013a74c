"""How strongly each part of the loss pulls at the student: the length of its gradient.

A part's value says little about that: a term can be most of the loss and move nothing.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

EVERY = 100  # steps between two measurements, each of which costs a backward pass per part
FADING = 0.9  # of the running mean over measurements
SCALE = 2.0**10  # under half precision the gradients of a small term would underflow; it cancels in shares and ratios
SEGMENTATION = "segmentation"


def gradient_lengths(parts: Mapping[str, Tensor], parameters: Sequence[nn.Parameter]) -> dict[str, Tensor]:
    """Length of the gradient of every part of a loss with respect to the student's weights.

    Args:
        parts: scalars whose graph is kept.
        parameters: the student's.

    Returns:
        A scalar per part, float32, at least 0; 0 where a part has no gradient.
    """
    lengths = {}
    for name, value in parts.items():
        if not value.requires_grad:
            lengths[name] = torch.zeros((), device=value.device)
            continue
        gradients = torch.autograd.grad(SCALE * value, parameters, retain_graph=True, allow_unused=True)
        squares = [g.float().square().sum() for g in gradients if g is not None]
        lengths[name] = (torch.stack(squares).sum().sqrt() / SCALE) if squares else torch.zeros((), device=value.device)
    return lengths


class GradientBalance:
    """Factors on the terms' weights that make a weight the ratio of two gradients' lengths: the term's and nnU-Net's
    loss's. Of weight 0.5, a term pulls half as hard as the labels, whatever its scale.

    The ratio of gradient lengths as an adaptive weight is from Esser et al., arXiv 2012.09841 (there of the last layer
    and without a mean); a running mean over measurements, and the whole student, are ours. It takes the place of a
    paper's own weights: what a paper calls 0.1 is no longer what it meant.
    """

    def __init__(self) -> None:
        self.lengths: dict[str, Tensor] = {}

    def update(self, lengths: Mapping[str, Tensor]) -> None:
        """Take in a measurement, the mean over DDP workers; one that is not finite is left out."""
        for name, length in lengths.items():
            if dist.is_available() and dist.is_initialized():
                dist.all_reduce(length)
                length = length / dist.get_world_size()
            before = self.lengths.get(name, length)
            mixed = FADING * before + (1 - FADING) * length
            self.lengths[name] = torch.where(torch.isfinite(length), mixed, before)

    def factor(self, name: str) -> Tensor | float:
        """The factor on a term's weight; 1 before the first measurement, and where the term has no gradient."""
        if name not in self.lengths:
            return 1.0
        own, segmentation = self.lengths[name], self.lengths[SEGMENTATION]
        return torch.where((own > 0) & torch.isfinite(own), segmentation / own.clamp(min=1e-12), torch.ones_like(own))

    def state(self) -> dict[str, Tensor]:
        return {name: length.detach().cpu() for name, length in self.lengths.items()}

    def restore(self, state: Mapping[str, Tensor], device: torch.device) -> None:
        self.lengths = {name: length.to(device) for name, length in state.items()}
