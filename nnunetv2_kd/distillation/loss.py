"""The loss without a teacher, plus the distillation terms: the one place where terms become a scalar."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from nnunetv2_kd.distillation.gradients import SEGMENTATION, GradientBalance, gradient_lengths
from nnunetv2_kd.errors import KDError
from nnunetv2_kd.methods import Methods, Step, need_logits
from nnunetv2_kd.networks.taps import Taps
from nnunetv2_kd.regions import Labels, known_heads
from nnunetv2_kd.teachers.teacher import TeacherOutput


def compute(terms: Methods, step: Step) -> dict[str, Tensor]:
    """Every term of a training step, unweighted."""
    return {name: method(step) for name, method in terms.items()}


class DistillationLoss(nn.Module):
    """The loss without a teacher, plus the terms inside of `distilling`. Outside (validation) it is that loss alone.

    Args:
        segmentation: the loss without a teacher.
        terms: the methods by name, with resolved stages.
        labels: how to read the targets.
        taps: of the student.
        trained_parts: see `build_trained_parts`.
        parameters: the student's, for measuring gradients.
        balance: whether a term's weight is the length of its gradient against that of the segmentation loss, see
            `GradientBalance`, and not a plain factor.

    Attributes:
        values: of the last call inside of `distilling`: ``segmentation`` and every term, unweighted, detached.
        weighted: of that call every term as it is in the total, detached.
        learnable: of that call whether each term had a gradient at all.
        gradients: length of the gradient of every part as it is in the total, where that was measured; else empty.
    """

    def __init__(
        self,
        segmentation: nn.Module,
        terms: Methods,
        labels: Labels,
        taps: Taps,
        trained_parts: nn.ModuleDict,
        parameters: Sequence[nn.Parameter] = (),
        balance: bool = False,
    ) -> None:
        super().__init__()
        self.segmentation = segmentation
        self.terms = terms
        self.labels = labels
        self.taps = taps
        self.trained_parts = trained_parts
        self.balance = GradientBalance() if balance else None
        self.values: dict[str, Tensor] = {}
        self.weighted: dict[str, Tensor] = {}
        self.learnable: dict[str, bool] = {}
        self.gradients: dict[str, Tensor] = {}
        # in a tuple, so that a student is no part of its own loss
        self._student_parameters = (tuple(parameters),)
        self._output_t: TeacherOutput | None = None
        self._factor = 1.0
        self._measures = False
        self._compute: Callable[[Methods, Step], dict[str, Tensor]] = compute

    def compile_terms(self) -> None:
        """Let torch compile the terms. They are hundreds of small operations, and a GPU finishes one before the next
        is launched."""
        self._compute = torch.compile(compute)

    @contextmanager
    def distilling(self, output: TeacherOutput, factor: float = 1.0, measure: bool = False) -> Iterator[None]:
        """Inside, a call adds the terms.

        Args:
            output: the teacher's, for the batch of that call.
            factor: on all terms.
            measure: whether to measure the gradient of every part, which costs a backward pass each.
        """
        self._output_t, self._factor, self._measures = output, factor, measure
        self.taps.recording = True
        try:
            yield
        finally:
            self._output_t, self._factor, self._measures = None, 1.0, False
            self.taps.recording = False
            self.taps.take()

    def forward(self, output: Tensor | list[Tensor], target: Tensor | list[Tensor]) -> Tensor:
        total: Tensor = self.segmentation(output, target)
        if self._output_t is None:
            return total
        step = self._step(output, target, self._output_t)
        with torch.autocast(step.logits_s[0].device.type, enabled=False):
            values = checked(self._compute(self.terms, step))
            if self._measures:
                self._measure(total, values)
            weighted = {name: self._weight(name) * value for name, value in values.items()}
        self.values = {SEGMENTATION: total.detach(), **{name: value.detach() for name, value in values.items()}}
        self.weighted = {name: value.detach() for name, value in weighted.items()}
        self.learnable = {name: value.requires_grad for name, value in values.items()}
        return total + torch.stack(list(weighted.values())).sum()

    def _weight(self, name: str) -> Tensor | float:
        # the schedule's factor changes at every step, and would be compiled anew as often
        weight = self._factor * self.terms[name].weight
        return weight if self.balance is None else weight * self.balance.factor(name)

    def _measure(self, total: Tensor, values: dict[str, Tensor]) -> None:
        lengths = gradient_lengths({SEGMENTATION: total, **values}, self._student_parameters[0])
        if self.balance is not None:
            self.balance.update(lengths)
        own = {name: (length * self._weight(name)).abs() for name, length in lengths.items() if name != SEGMENTATION}
        self.gradients = {SEGMENTATION: lengths[SEGMENTATION], **own}

    def _step(self, output: Tensor | list[Tensor], target: Tensor | list[Tensor], output_t: TeacherOutput) -> Step:
        outputs = list(output) if isinstance(output, (list, tuple)) else [output]
        targets = list(target) if isinstance(target, (list, tuple)) else [target]
        weights = getattr(self.segmentation, "weight_factors", None)
        if weights is None:  # without deep supervision, or with a loss that weighs nothing
            weights = [1.0] * len(outputs)
        by_size = {tuple(z.shape[2:]): z for z in output_t.logits}
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
        known = known_heads(self.labels, output_t.known)
        return Step(
            labels=self.labels if known is None else known.merged,
            logits_s=[z_s if known is None else known.logits(z_s) for _, z_s, _ in heads],
            logits_t=[by_size[tuple(z_s.shape[2:])] for _, z_s, _ in heads] if by_size else [],
            targets=[y if known is None else known.target(y) for _, _, y in heads],
            head_weights=[w for w, _, _ in heads],
            features_s=self.taps.take(),
            features_t=output_t.features,
            edges_t=output_t.edges,
            trained_parts=self.trained_parts,
        )


def checked(values: dict[str, Tensor]) -> dict[str, Tensor]:
    """The terms are scalars.

    Raises:
        KDError: names a method that gives something else.
    """
    for name, value in values.items():
        if not isinstance(value, Tensor) or value.ndim != 0:
            found = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise KDError(f"The method {name} must give a scalar tensor, found {found}.")
    return values
