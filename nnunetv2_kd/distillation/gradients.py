"""How strongly each part of the loss pulls on the student: the length (L2 norm) of its gradient.

A part's value says little about this: a term can make up most of the loss and still change no weight.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

EVERY = 100  # steps between two measurements, each of which costs a backward pass per part
FADING = 0.9  # weight of earlier measurements in the running mean
SCALE = 2.0**10  # keeps a small term's half-precision gradients from underflowing; divided out of the lengths
SEGMENTATION = "segmentation"


def gradient_norms(parts: Mapping[str, Tensor], parameters: Sequence[nn.Parameter]) -> dict[str, Tensor]:
    """Length of each loss part's gradient with respect to the student's weights.

    Args:
        parts: scalars; their graphs are kept, so that ``backward`` can still be called.
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
    """Factors that turn a term's weight into a ratio: its gradient's length over that of the segmentation loss. With
    weight 0.5, a term pulls half as hard as the labels, whatever its scale.

    Esser et al., arXiv 2012.09841, weight a loss by such a ratio, measured at the last layer and without a mean. The
    running mean and measuring on the whole student are ours. Weights given in papers lose their meaning: they were
    chosen as plain factors.
    """

    def __init__(self) -> None:
        self.lengths: dict[str, Tensor] = {}

    def update(self, lengths: Mapping[str, Tensor]) -> None:
        """Average a measurement over DDP workers and add it to the running means; values that are not
        finite are ignored."""
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
