"""The total loss: the segmentation loss plus the weighted distillation terms."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from nnunetv2_kd.distillation.gradients import SEGMENTATION, GradientBalance, gradient_norms
from nnunetv2_kd.errors import KDError
from nnunetv2_kd.methods import Methods, Step, any_needs_logits
from nnunetv2_kd.networks.taps import Taps
from nnunetv2_kd.regions import Labels, known_heads
from nnunetv2_kd.teachers.teacher import TeacherOutput


def compute_terms(terms: Methods, step: Step) -> dict[str, Tensor]:
    """Every term of a training step, unweighted."""
    return {name: method(step) for name, method in terms.items()}


class DistillationLoss(nn.Module):
    """The segmentation loss, plus the distillation terms inside `distilling`; outside (in validation) without them.

    Args:
        segmentation: the loss on the labels alone.
        terms: the methods by name, with resolved stages.
        labels: how to read the targets.
        taps: on the student's stages.
        trained_parts: see `build_trained_parts`.
        parameters: the student's, for measuring gradients.
        balance_gradients: whether weights are ratios of gradient lengths instead of plain factors, see
            `GradientBalance`.

    Attributes:
        values: from the last call inside `distilling`, ``segmentation`` and every term, unweighted, detached.
        weighted: from the same call, every term as it enters the total, detached.
        learnable: from the same call, whether each term had a gradient at all.
        gradients: gradient length of every part as it enters the total, if it was measured; otherwise empty.
    """

    def __init__(
        self,
        segmentation: nn.Module,
        terms: Methods,
        labels: Labels,
        taps: Taps,
        trained_parts: nn.ModuleDict,
        parameters: Sequence[nn.Parameter] = (),
        balance_gradients: bool = False,
    ) -> None:
        super().__init__()
        self.segmentation = segmentation
        self.terms = terms
        self.labels = labels
        self.taps = taps
        self.trained_parts = trained_parts
        self.gradient_balance = GradientBalance() if balance_gradients else None
        self.values: dict[str, Tensor] = {}
        self.weighted: dict[str, Tensor] = {}
        self.learnable: dict[str, bool] = {}
        self.gradients: dict[str, Tensor] = {}
        # in a tuple, so that the loss does not register the student's parameters as its own
        self._student_parameters = (tuple(parameters),)
        self._output_t: TeacherOutput | None = None
        self._factor = 1.0
        self._measures = False
        self._compute: Callable[[Methods, Step], dict[str, Tensor]] = compute_terms

    def compile_terms(self) -> None:
        """Compile the terms: hundreds of operations so small that a GPU finishes one before the next is launched."""
        self._compute = torch.compile(compute_terms)

    @contextmanager
    def distilling(self, output: TeacherOutput, factor: float = 1.0, measure: bool = False) -> Iterator[None]:
        """Within this context, calling the loss adds the terms.

        Args:
            output: the teacher's output for the same batch.
            factor: multiplies every term.
            measure: whether to measure every part's gradient length, at the cost of one backward pass per part.
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
            values = require_scalars(self._compute(self.terms, step))
            if self._measures:
                self._measure(total, values)
            weighted = {name: self._weight(name) * value for name, value in values.items()}
        self.values = {SEGMENTATION: total.detach(), **{name: value.detach() for name, value in values.items()}}
        self.weighted = {name: value.detach() for name, value in weighted.items()}
        self.learnable = {name: value.requires_grad for name, value in values.items()}
        return total + torch.stack(list(weighted.values())).sum()

    def _weight(self, name: str) -> Tensor | float:
        # kept out of the compiled terms: the schedule changes it at every step, so they would be recompiled each time
        weight = self._factor * self.terms[name].weight
        return weight if self.gradient_balance is None else weight * self.gradient_balance.factor(name)

    def _measure(self, total: Tensor, values: dict[str, Tensor]) -> None:
        lengths = gradient_norms({SEGMENTATION: total, **values}, self._student_parameters[0])
        if self.gradient_balance is not None:
            self.gradient_balance.update(lengths)
        own = {name: (length * self._weight(name)).abs() for name, length in lengths.items() if name != SEGMENTATION}
        self.gradients = {SEGMENTATION: lengths[SEGMENTATION], **own}

    def _step(self, output: Tensor | list[Tensor], target: Tensor | list[Tensor], output_t: TeacherOutput) -> Step:
        outputs = list(output) if isinstance(output, (list, tuple)) else [output]
        targets = list(target) if isinstance(target, (list, tuple)) else [target]
        weights = getattr(self.segmentation, "weight_factors", None)
        if weights is None:  # no deep supervision, or a loss without weights per head
            weights = [1.0] * len(outputs)
        by_size = {tuple(z.shape[2:]): z for z in output_t.logits}
        heads = [
            (float(w), z_s, y)
            for w, z_s, y in zip(weights, outputs, targets, strict=True)
            if w != 0 and (not by_size or tuple(z_s.shape[2:]) in by_size)
        ]
        if not heads or (not by_size and any_needs_logits(self.terms)):
            raise KDError(
                "No segmentation head of the teacher has the same size as one of the student's: "
                f"teacher {sorted(by_size)}, student {[tuple(z.shape[2:]) for z in outputs]}."
            )
        known = known_heads(self.labels, output_t.known)
        return Step(
            labels=self.labels if known is None else known.merged_labels,
            logits_s=[z_s if known is None else known.logits(z_s) for _, z_s, _ in heads],
            logits_t=[by_size[tuple(z_s.shape[2:])] for _, z_s, _ in heads] if by_size else [],
            targets=[y if known is None else known.target(y) for _, _, y in heads],
            head_weights=[w for w, _, _ in heads],
            features_s=self.taps.take(),
            features_t=output_t.features,
            edges_t=output_t.edges,
            trained_parts=self.trained_parts,
        )


def require_scalars(values: dict[str, Tensor]) -> dict[str, Tensor]:
    """The values, each checked to be a scalar tensor.

    Raises:
        KDError: names a method that returned something else.
    """
    for name, value in values.items():
        if not isinstance(value, Tensor) or value.ndim != 0:
            found = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise KDError(f"The method {name} must return a scalar tensor, found {found}.")
    return values
