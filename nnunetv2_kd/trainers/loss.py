"""nnU-Net's own loss plus the distillation terms: the one place where terms become a scalar."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from nnunetv2_kd import losses
from nnunetv2_kd.config import FeatureTerm, ImportanceMap, RegionAffinity, RegionKL, Term, VoxelKL
from nnunetv2_kd.errors import KDError
from nnunetv2_kd.features import Taps, resolve_stage, stage_modules


@dataclass(frozen=True)
class Labels:
    """How nnU-Net's targets of a dataset are to be read.

    Attributes:
        num_heads: number of segmentation heads ``K``.
        has_regions: whether the heads are overlapping regions (sigmoid); the targets then have a channel per region.
        ignore_label: its value among ordinary labels; with regions any value says that the last channel marks it.
    """

    num_heads: int
    has_regions: bool
    ignore_label: int | None

    def membership(self, target: Tensor) -> Tensor:
        """Regions of a target, see `nnunetv2_kd.losses.regions`."""
        if self.has_regions:
            return losses.region_membership(target, self.ignore_label is not None)
        return losses.label_membership(target, self.num_heads, self.ignore_label)

    def valid(self, target: Tensor) -> Tensor | None:
        """``(B, 1, *S)`` bool, False at ignored voxels; None where the dataset has no ignore label."""
        if self.ignore_label is None:
            return None
        return ~target[:, -1:].bool() if self.has_regions else target != self.ignore_label


@dataclass
class Step:
    """Everything that terms look at in one training step. Logits and targets are lists over the heads that both
    networks have and nnU-Net's loss weights, finest first."""

    labels: Labels
    logits_s: list[Tensor]
    logits_t: list[Tensor]
    targets: list[Tensor]
    head_weights: list[float]
    features_s: dict[str, Tensor]
    features_t: dict[str, Tensor]

    @cached_property
    def membership(self) -> Tensor:
        """Regions of the finest target."""
        return self.labels.membership(self.targets[0])

    def over_heads(self, term: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
        """Sum over heads of the head's weight times ``term(student's logits, teacher's logits, target)``."""
        heads = zip(self.head_weights, self.logits_s, self.logits_t, self.targets, strict=True)
        return torch.stack([weight * term(z_s, z_t, target) for weight, z_s, z_t, target in heads]).sum()

    def over_stages(self, stages: Sequence[str], term: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Sum over stages of ``term(student's features, teacher's features)``."""
        return torch.stack([term(self.features_s[stage], self.features_t[stage]) for stage in stages]).sum()


def voxel_kl(options: VoxelKL, step: Step) -> Tensor:
    return step.over_heads(
        lambda z_s, z_t, target: losses.voxel_kl(
            z_s, z_t, step.labels.valid(target), options.temperature, step.labels.has_regions
        )
    )


def region_kl(options: RegionKL, step: Step) -> Tensor:
    return step.over_heads(
        lambda z_s, z_t, target: losses.region_kl(
            z_s,
            z_t,
            step.labels.membership(target) if options.membership == "labels" else None,
            options.temperature,
            step.labels.has_regions,
        )
    )


def importance_map(options: ImportanceMap, step: Step) -> Tensor:
    return step.over_stages(options.stages, losses.importance_map_loss)


def region_affinity(options: RegionAffinity, step: Step) -> Tensor:
    return step.over_stages(options.stages, lambda f_s, f_t: losses.region_affinity(f_s, f_t, step.membership))


TERMS: dict[str, Callable[[Any, Step], Tensor]] = {
    "voxel_kl": voxel_kl,
    "region_kl": region_kl,
    "importance_map": importance_map,
    "region_affinity": region_affinity,
}


class DistillationLoss(nn.Module):
    """nnU-Net's loss, plus the terms while a teacher's answer is there. Without one (validation) it is nnU-Net's loss.

    Attributes:
        answer: the teacher's logits and features for the batch at hand, or None.
        factor: of the schedule, on all terms.
        values: what the last call with an answer computed: ``segmentation`` and every term, unweighted, detached.
    """

    def __init__(self, segmentation: nn.Module, terms: dict[str, Term], labels: Labels, taps: Taps) -> None:
        super().__init__()
        self.segmentation = segmentation
        self.terms = terms
        self.labels = labels
        self.taps = taps
        self.answer: tuple[list[Tensor], dict[str, Tensor]] | None = None
        self.factor = 1.0
        self.values: dict[str, Tensor] = {}

    def forward(self, output: Tensor | list[Tensor], target: Tensor | list[Tensor]) -> Tensor:
        total = self.segmentation(output, target)
        if self.answer is None:
            return total
        self.values = {"segmentation": total.detach()}
        step = self._step(output, target, *self.answer)
        with torch.autocast(step.logits_s[0].device.type, enabled=False):
            for name, options in self.terms.items():
                value = TERMS[name](options, step)
                self.values[name] = value.detach()
                total = total + self.factor * options.weight * value
        return total

    def _step(
        self,
        output: Tensor | list[Tensor],
        target: Tensor | list[Tensor],
        logits_t: list[Tensor],
        features_t: dict[str, Tensor],
    ) -> Step:
        outputs = list(output) if isinstance(output, (list, tuple)) else [output]
        targets = list(target) if isinstance(target, (list, tuple)) else [target]
        weights = getattr(self.segmentation, "weight_factors", None) or [1.0] * len(outputs)
        by_size = {tuple(z.shape[2:]): z for z in logits_t}
        heads = [
            (float(w), z_s, by_size[tuple(z_s.shape[2:])], y)
            for w, z_s, y in zip(weights, outputs, targets, strict=True)
            if w != 0 and tuple(z_s.shape[2:]) in by_size
        ]
        if not heads:
            raise KDError(
                "No segmentation head of the teacher has the size of one of the student's: "
                f"teacher {sorted(by_size)}, student {[tuple(z.shape[2:]) for z in outputs]}."
            )
        return Step(
            labels=self.labels,
            logits_s=[z_s for _, z_s, _, _ in heads],
            logits_t=[z_t for _, _, z_t, _ in heads],
            targets=[y for _, _, _, y in heads],
            head_weights=[w for w, _, _, _ in heads],
            features_s=self.taps.take(),
            features_t=features_t,
        )


def tapped_stages(terms: dict[str, Term]) -> list[str]:
    """Every stage that a term taps, each once."""
    return sorted({stage for term in terms.values() if isinstance(term, FeatureTerm) for stage in term.stages})


def with_resolved_stages(terms: dict[str, Term], student: nn.Module) -> dict[str, Term]:
    """The terms with every stage's name spelt as the student's `stage_modules` spell it: ``encoder.-1`` and so on.

    Raises:
        KDError: where the student lacks a stage, or a term names one twice, once from the top and once from below.
    """
    resolved = dict(terms)
    for name, term in terms.items():
        if isinstance(term, FeatureTerm):
            stages = tuple(resolve_stage(stage, stage_modules(student)) for stage in term.stages)
            if len(set(stages)) != len(stages):
                raise KDError(f"terms.{name} names a stage twice: {', '.join(term.stages)} are {', '.join(stages)}.")
            resolved[name] = term.model_copy(update={"stages": stages})
    return resolved
