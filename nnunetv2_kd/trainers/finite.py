"""Steps that would put NaN or infinity into the weights are skipped, counted and reported. After too many of them, the
training stops."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nnunetv2_kd.distillation.gradients import SEGMENTATION
from nnunetv2_kd.errors import KDError
from nnunetv2_kd.teachers.teacher import Batch, TeacherOutput

MOST_IN_A_ROW = 25
GRADIENT = "the gradient"
LOSS = "nnU-Net's loss"
TEACHER = "the teacher's output"


class NotFiniteError(ArithmeticError):
    """The gradient of a step contains NaN or infinity; raised before the optimizer makes the step."""


def refuse_non_finite_steps(optimizer: torch.optim.Optimizer) -> None:
    """Make the optimizer raise `NotFiniteError` instead of making a step with a gradient that is not finite. On a GPU,
    nnU-Net's GradScaler skips such steps itself, so nothing is checked twice."""

    def before_step(stepped: torch.optim.Optimizer, *_: Any) -> None:
        gradients = [p.grad for group in stepped.param_groups for p in group["params"] if p.grad is not None]
        if gradients and not gradients[0].is_cuda and not are_finite(gradients):
            raise NotFiniteError

    optimizer.register_step_pre_hook(before_step)


def are_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether all numbers are finite. This looks at their sums, which are not finite if any number is not."""
    sums = [tensor.detach().sum(dtype=torch.float32) for tensor in tensors if tensor.is_floating_point()]
    return not sums or bool(torch.isfinite(torch.stack(sums).sum()))


def bad_cases(batch: Batch) -> list[str]:
    """Names of the cases of a batch whose images contain NaN or infinity."""
    data: Tensor = batch["data"]
    if are_finite([data]):
        return []
    keys = [str(key) for key in batch.get("keys", range(len(data)))]
    return [key for key, image in zip(keys, data, strict=True) if not bool(torch.isfinite(image).all())]


def first_not_finite(output: TeacherOutput | None, values: Mapping[str, Tensor]) -> str:
    """What was the first to be not finite in a step: the teacher's output, a part of the loss, or otherwise the
    gradient.

    Args:
        output: the teacher's output; None if the step used none.
        values: nnU-Net's loss and every term; empty if they are not known.
    """
    if output is not None and not are_finite([*output.logits, *output.features.values()]):
        return TEACHER
    for name, value in values.items():
        if not bool(torch.isfinite(value)):
            return LOSS if name == SEGMENTATION else f"the term {name}"
    return GRADIENT if values else f"{LOSS} or its gradient"


class FiniteSteps:
    """The steps of a training, and how many were skipped.

    Args:
        say: called with a message for every case that cannot be trained on, and for every new reason.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self.left_out: Counter[str] = Counter()  # in this epoch
        self._say = say
        self._warned_of: set[str] = set()
        self._in_a_row = 0

    def batch(self, first: Batch, others: Iterator[Batch]) -> Batch:
        """The first batch that can be trained on.

        Args:
            first: the current batch.
            others: gives further batches.

        Raises:
            KDError: if too many batches in a row cannot be trained on.
        """
        batch = first
        while cases := bad_cases(batch):
            for case in cases:
                what = f"the image of {case}"
                self._leave_out(
                    what,
                    f"{what} contains numbers that are not finite (NaN or infinity). Batches with it are skipped and "
                    "replaced. Correct the image and preprocess it again, or remove it from the training split.",
                )
            batch = next(others)
        return batch

    def count_skipped(self, what: str) -> None:
        """Count a step that was skipped because ``what`` was not finite.

        Raises:
            KDError: if too many steps in a row were skipped.
        """
        self._leave_out(what, f"{what} was not finite: the step was skipped.")

    def count_scaled_down(self) -> None:
        """Count a step that nnU-Net skipped on a GPU because its gradient was too large for float16, which happens now
        and then.

        Raises:
            KDError: if this has happened too often in a row.
        """
        self._in_a_row += 1
        self._stop_if_too_many(GRADIENT)

    def count_taken(self) -> None:
        """Note that a step was made."""
        self._in_a_row = 0

    def close_epoch(self, epoch: int, steps: int) -> list[str]:
        """The lines for the log after an epoch; the count starts again from 0.

        Args:
            steps: number of steps in the epoch, including the skipped ones.

        Raises:
            KDError: if all steps were skipped.
        """
        if not self.left_out:
            return []
        counts = ", ".join(f"{count} for {what}" for what, count in self.left_out.most_common())
        what = self.left_out.most_common(1)[0][0]
        self.left_out.clear()
        if self._in_a_row >= steps:
            self._stop(what)
        return [f"WARNING: steps skipped in epoch {epoch} because something was not finite: {counts}."]

    def _leave_out(self, what: str, message: str) -> None:
        self.left_out[what] += 1
        self._in_a_row += 1
        if what not in self._warned_of:
            self._warned_of.add(what)
            self._say(f"WARNING: {message}")
        self._stop_if_too_many(what)

    def _stop_if_too_many(self, what: str) -> None:
        if self._in_a_row >= MOST_IN_A_ROW:
            self._stop(what)

    def _stop(self, what: str) -> None:
        raise KDError(
            f"{what[0].upper()}{what[1:]} was not finite, and {self._in_a_row} steps in a row were skipped for such "
            f"reasons. {_advice(what)} All checkpoints contain finite numbers only."
        )


def fill_in_losses(outputs: list[dict]) -> list[dict]:
    """The outputs of an epoch's steps, with the mean loss in place of the loss of every skipped step."""
    made = [float(output["loss"]) for output in outputs if np.isfinite(output["loss"])]
    mean = np.float32(np.mean(made)) if made else np.float32(np.nan)
    return [output if np.isfinite(output["loss"]) else {**output, "loss": mean} for output in outputs]


def check_weights(network: nn.Module, file: str) -> None:
    """Check that the weights to save are finite.

    Raises:
        KDError: if a weight is not finite; nothing has been written then.
    """
    named = [*network.named_parameters(), *network.named_buffers()]
    if are_finite(tensor for _, tensor in named):
        return
    bad = [name for name, tensor in named if not bool(torch.isfinite(tensor).all())]
    if bad:
        raise KDError(
            f"{len(bad)} of {len(named)} weights are not finite ({bad[0]} first), so {file} is not written, and the "
            "previous checkpoint is kept. A smaller learning rate may help (optimizer.lr in the options)."
        )


def _advice(what: str) -> str:
    if what == TEACHER:
        return "Its checkpoint is damaged, or its training diverged: name another teacher."
    if what.startswith("the image"):
        return "Correct the images and preprocess them again, or remove them from the training split."
    if what.startswith("the term"):
        return "Give the term a smaller weight or another temperature, or leave it out."
    return "A smaller learning rate may help (optimizer.lr in the options)."
