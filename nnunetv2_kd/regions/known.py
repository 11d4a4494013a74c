"""What a partial teacher knows of a student's labels: the rest of both networks is one class, "anything else"."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nnunetv2_kd.regions.labels import Labels


@dataclass(frozen=True)
class Known:
    """Which of a student's heads its teacher knows.

    Where heads exclude each other (softmax), the probability of "anything else" is the sum of those of the background
    and of every structure that the teacher does not know (the marginal probability of Shi et al., arXiv 2007.03868;
    against a teacher: Cermelli et al., arXiv 2002.00718). Heads that are overlapping regions stand each for itself:
    those that the teacher does not know are left out (ours).

    Attributes:
        labels: the student's.
        heads: that are known, rising; the background of softmax heads is not among them.
    """

    labels: Labels
    heads: tuple[int, ...]

    @property
    def merged(self) -> Labels:
        """How targets and logits are to be read once they are merged."""
        return Labels(
            len(self.heads) + (not self.labels.has_regions), self.labels.has_regions, self.labels.ignore_label
        )

    def logits(self, logits: Tensor) -> Tensor:
        """The student's logits ``(B, K, *S)`` merged: ``(B, 1 + H, *S)`` with "anything else" first, whose softmax are
        the marginal probabilities; of overlapping regions ``(B, H, *S)``."""
        known = logits[:, list(self.heads)]
        if self.labels.has_regions:
            return known
        others = [head for head in range(self.labels.num_heads) if head not in self.heads]
        # in float32, as under autocast a sum of exponentials overflows
        rest = logits[:, others].float().logsumexp(dim=1, keepdim=True)
        return torch.cat((rest, known.float()), dim=1)

    def target(self, target: Tensor) -> Tensor:
        """nnU-Net's target of one head, merged."""
        if self.labels.has_regions:
            return target[:, [*self.heads, *range(self.labels.num_heads, target.shape[1])]]
        merged = torch.zeros_like(target)
        for new, head in enumerate(self.heads, start=1):
            merged[target == head] = new
        if self.labels.ignore_label is not None:
            merged[target == self.labels.ignore_label] = self.labels.ignore_label
        return merged


def known_heads(labels: Labels, heads: Sequence[int] | None) -> Known | None:
    """None where the teacher knows all heads."""
    if heads is None or len(heads) == labels.num_heads - (not labels.has_regions):
        return None
    return Known(labels, tuple(heads))
