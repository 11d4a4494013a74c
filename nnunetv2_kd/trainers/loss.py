"""nnU-Net's own loss plus the distillation terms: the one place where terms become a scalar."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from nnunetv2_kd.errors import KDError
from nnunetv2_kd.methods.options import Term
from nnunetv2_kd.methods.step import Step
from nnunetv2_kd.networks.taps import Taps
from nnunetv2_kd.regions import Labels
from nnunetv2_kd.teachers.teacher import TeacherOutput
from nnunetv2_kd.trainers.terms import TERMS, need_logits


def compute(terms: dict[str, Term], step: Step) -> tuple[dict[str, Tensor], Tensor]:
    """Every term of a training step, and their weighted sum."""
    values = {name: TERMS[name](options, step) for name, options in terms.items()}
    return values, torch.stack([options.weight * values[name] for name, options in terms.items()]).sum()


class DistillationLoss(nn.Module):
    """nnU-Net's loss, plus the terms while a teacher's answer is there. Without one (validation) it is nnU-Net's loss.

    Attributes:
        answer: the teacher's for the batch at hand, or None.
        adapters: the trained parts of the terms that have some.
        factor: of the schedule, on all terms.
        values: what the last call with an answer computed: ``segmentation`` and every term, unweighted, detached.
    """

    def __init__(
        self, segmentation: nn.Module, terms: dict[str, Term], labels: Labels, taps: Taps, adapters: nn.ModuleDict
    ) -> None:
        super().__init__()
        self.segmentation = segmentation
        self.terms = terms
        self.labels = labels
        self.taps = taps
        self.adapters = adapters
        self.answer: TeacherOutput | None = None
        self.factor = 1.0
        self.values: dict[str, Tensor] = {}
        self._compute: Callable[[dict[str, Term], Step], tuple[dict[str, Tensor], Tensor]] = compute

    def compile_terms(self) -> None:
        """Let torch compile the terms: hundreds of small steps, which a GPU is through with sooner than told of."""
        self._compute = torch.compile(compute)

    def forward(self, output: Tensor | list[Tensor], target: Tensor | list[Tensor]) -> Tensor:
        total = self.segmentation(output, target)
        if self.answer is None:
            return total
        self.values = {"segmentation": total.detach()}
        step = self._step(output, target, self.answer)
        with torch.autocast(step.logits_s[0].device.type, enabled=False):
            values, weighted = self._compute(self.terms, step)
        self.values |= {name: value.detach() for name, value in values.items()}
        # the factor changes at every step, and would be compiled anew as often
        return total + self.factor * weighted

    def _step(self, output: Tensor | list[Tensor], target: Tensor | list[Tensor], answer: TeacherOutput) -> Step:
        outputs = list(output) if isinstance(output, (list, tuple)) else [output]
        targets = list(target) if isinstance(target, (list, tuple)) else [target]
        weights = getattr(self.segmentation, "weight_factors", None) or [1.0] * len(outputs)
        by_size = {tuple(z.shape[2:]): z for z in answer.logits}
        heads = [
            (float(w), z_s, y)
            for w, z_s, y in zip(weights, outputs, targets, strict=True)
            if w != 0 and (not by_size or tuple(z_s.shape[2:]) in by_size)
        ]
        if not heads or (not by_size and need_logits(self.terms)):
            raise KDError(
                "No segmentation head of the teacher has the size of one of the student's: "
                f"teacher {sorted(by_size)}, student {[tuple(z.shape[2:]) for z in outputs]}."
            )
        return Step(
            labels=self.labels,
            logits_s=[z_s for _, z_s, _ in heads],
            logits_t=[by_size[tuple(z_s.shape[2:])] for _, z_s, _ in heads] if by_size else [],
            targets=[y for _, _, y in heads],
            head_weights=[w for w, _, _ in heads],
            features_s=self.taps.take(),
            features_t=answer.features,
            edges_t=answer.edges,
            adapters=self.adapters,
        )
