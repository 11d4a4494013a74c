"""Everything that distillation terms look at in one training step."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from nnunetv2_kd.regions import Labels, Regions, region_graph


@dataclass
class Step:
    """One training step. Logits and targets are lists over the heads that both networks have and nnU-Net's loss
    weights, finest first.

    Attributes:
        logits_t: the teacher's; empty where no term looks at them. Then the other lists are over all of the student's
            heads that nnU-Net's loss weights.
        features_s: the student's features by stage.
        features_t: the teacher's under the student's names of the stages; empty where there are several teachers.
        edges_t: cosines between all regions of the batch by stage, see `region_graph`, combined over several
            teachers; empty where there is one.
        adapters: the trained parts of the terms that have some, by term.
    """

    labels: Labels
    logits_s: list[Tensor]
    logits_t: list[Tensor]
    targets: list[Tensor]
    head_weights: list[float]
    features_s: dict[str, Tensor]
    features_t: dict[str, Tensor]
    edges_t: dict[str, Tensor]
    adapters: nn.ModuleDict
    _regions: Regions | None = field(default=None, init=False)

    @property
    def regions(self) -> Regions:
        """Regions of the finest target."""
        if self._regions is None:  # not a cached_property: before Python 3.12 it has a lock, which is not compiled
            self._regions = self.labels.regions(self.targets[0])
        return self._regions

    def over_heads(self, term: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
        """Sum over heads of the head's weight times ``term(student's logits, teacher's logits, target)``."""
        heads = zip(self.head_weights, self.logits_s, self.logits_t, self.targets, strict=True)
        return torch.stack([weight * term(z_s, z_t, target) for weight, z_s, z_t, target in heads]).sum()

    def over_stages(self, stages: Sequence[str], term: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Sum over stages of ``term(student's features, teacher's features)``."""
        return torch.stack([term(self.features_s[stage], self.features_t[stage]) for stage in stages]).sum()

    def graphs(self, stage: str) -> tuple[Tensor, Tensor, Tensor]:
        """Student's and teacher's cosines between all regions of the batch, ``(B*K, B*K)``, and which are present."""
        edges_s, present = region_graph(self.features_s[stage], self.regions)
        if stage in self.edges_t:
            return edges_s, self.edges_t[stage], present
        return edges_s, region_graph(self.features_t[stage].detach(), self.regions)[0], present

    def adapted(self, name: str, stages: Sequence[str], *others: Tensor) -> Tensor:
        """The term ``name``, whose trained part compares the features of these stages."""
        features_s = {stage: self.features_s[stage] for stage in stages}
        features_t = {stage: self.features_t[stage].detach() for stage in stages}
        return self.adapters[name](features_s, features_t, *others)
