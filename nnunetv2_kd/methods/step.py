"""Everything that a method may look at in one training step."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from nnunetv2_kd.regions import Labels, Regions, region_graph


@dataclass
class Step:
    """One training step. Logits and targets are lists, finest head first. They cover the segmentation heads that both
    networks have and to which nnU-Net's loss gives a weight.

    Attributes:
        labels: how to read the targets.
        logits_s: the student's logits, ``(B, K, *S)`` per head.
        logits_t: the teacher's; empty if no method needs them. The other lists then cover all of the student's heads to
            which nnU-Net's loss gives a weight.
        targets: nnU-Net's, per head: ``(B, 1, *S)``, or one channel per region if regions overlap.
        head_weights: nnU-Net's weight of every head.
        features_s: the student's features ``(B, C, *S)`` by stage.
        features_t: the teacher's, by the student's stage names; empty with several teachers or a stored one.
        edges_t: with several teachers or a stored one, the cosines between all regions of the batch ``(B*K, B*K)`` by
            stage; empty with a single running teacher.
        trained_parts: modules that methods train with the student, by the method's name.
    """

    labels: Labels
    logits_s: list[Tensor]
    logits_t: list[Tensor]
    targets: list[Tensor]
    head_weights: list[float]
    features_s: Mapping[str, Tensor]
    features_t: Mapping[str, Tensor] = field(default_factory=dict)
    edges_t: Mapping[str, Tensor] = field(default_factory=dict)
    trained_parts: nn.ModuleDict = field(default_factory=nn.ModuleDict)
    _regions: Regions | None = field(default=None, init=False)

    @property
    def uses_sigmoid(self) -> bool:
        """Whether the heads are overlapping regions (sigmoid) and not exclusive classes (softmax)."""
        return self.labels.has_regions

    @property
    def sigmoid(self) -> bool:
        """The former name of `uses_sigmoid`, for methods that were written for version 0.2."""
        return self.uses_sigmoid

    def valid(self, target: Tensor) -> Tensor | None:
        """``(B, 1, *S)`` bool, False at voxels with the ignore label; None if the dataset has none.

        For methods that average over voxels, whatever their labels.
        """
        return self.labels.valid(target)

    def regions(self, target: Tensor | None = None) -> Regions:
        """Which region every voxel of a target (default: the finest) belongs to, at any grid. Ignored voxels belong to
        none.

        For methods that compare regions, or that give a small region as much weight as a large one.
        """
        if target is not None:
            return self.labels.regions(target)
        if self._regions is None:  # not a cached_property: before Python 3.12 it locks, which torch cannot compile
            self._regions = self.labels.regions(self.targets[0])
        return self._regions

    def over_heads(self, term: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
        """Sum over heads of the head's weight times ``term(student's logits, teacher's logits, target)``."""
        heads = zip(self.head_weights, self.logits_s, self.logits_t, self.targets, strict=True)
        return torch.stack([weight * term(z_s, z_t, target) for weight, z_s, z_t, target in heads]).sum()

    def over_stages(self, stages: Sequence[str], term: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Sum over stages of ``term(student's features, teacher's features)``."""
        return torch.stack([term(self.features_s[stage], self.features_t[stage]) for stage in stages]).sum()

    def region_graphs(self, stage: str) -> tuple[Tensor, Tensor, Tensor]:
        """How similar all regions of the batch are in the features of both networks, see
        `nnunetv2_kd.regions.region_graph`.

        Returns:
            Student's and teacher's cosines ``(B*K, B*K)``, and which regions are present ``(B*K,)``.
        """
        edges_s, present = region_graph(self.features_s[stage], self.regions())
        if stage in self.edges_t:
            edges_t = self.edges_t[stage]
            # if no teacher knows a region, the student's own value makes the difference 0
            return edges_s, torch.where(edges_t.isnan(), edges_s.detach(), edges_t), present
        return edges_s, region_graph(self.features_t[stage].detach(), self.regions())[0], present

    def trained_part(self, name: str) -> nn.Module:
        """The module that the method of that name trains with the student, see `Method.trained_part`."""
        return self.trained_parts[name]

    def stage_features(self, stages: Sequence[str]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Student's and teacher's features of these stages, the teacher's without gradient."""
        return (
            {stage: self.features_s[stage] for stage in stages},
            {stage: self.features_t[stage].detach() for stage in stages},
        )
