"""Which of a student's labels a partial teacher knows. All others are merged into one class, "anything else"."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nnunetv2_kd.regions.labels import Labels


@dataclass(frozen=True)
class Known:
    """Which of a student's heads its teacher knows.

    With exclusive classes (softmax), the probability of "anything else" is the sum over the background and every
    structure that the teacher does not know (the marginal probability of Shi et al., arXiv 2007.03868; between student
    and teacher: Cermelli et al., arXiv 2002.00718). With overlapping regions (sigmoid), heads that the teacher does not
    know are left out (ours).

    Attributes:
        labels: the student's.
        heads: the known heads in ascending order, without the background of softmax heads.
    """

    labels: Labels
    heads: tuple[int, ...]

    @property
    def merged_labels(self) -> Labels:
        """How to read the merged targets and logits."""
        return Labels(
            len(self.heads) + (not self.labels.has_regions), self.labels.has_regions, self.labels.ignore_label
        )

    def logits(self, logits: Tensor) -> Tensor:
        """Merge the student's logits ``(B, K, *S)`` into ``(B, 1 + H, *S)``, "anything else" first; their softmax gives
        the marginal probabilities. With overlapping regions: ``(B, H, *S)``."""
        known = logits[:, list(self.heads)]
        if self.labels.has_regions:
            return known
        others = [head for head in range(self.labels.num_heads) if head not in self.heads]
        # in float32, because a sum of exponentials overflows in half precision
        rest = logits[:, others].float().logsumexp(dim=1, keepdim=True)
        return torch.cat((rest, known.float()), dim=1)

    def target(self, target: Tensor) -> Tensor:
        """Merge nnU-Net's target of one head."""
        if self.labels.has_regions:
            return target[:, [*self.heads, *range(self.labels.num_heads, target.shape[1])]]
        merged_labels = torch.zeros_like(target)
        for new, head in enumerate(self.heads, start=1):
            merged_labels[target == head] = new
        if self.labels.ignore_label is not None:
            merged_labels[target == self.labels.ignore_label] = self.labels.ignore_label
        return merged_labels


def known_heads(labels: Labels, heads: Sequence[int] | None) -> Known | None:
    """The heads that the teacher knows; None if it knows all."""
    if heads is None or len(heads) == labels.num_heads - (not labels.has_regions):
        return None
    return Known(labels, tuple(heads))
