"""Steps that would put NaN or infinity into the weights: left out, counted and told. After too many the training
stops."""

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
    """A step whose gradient holds NaN or infinity, before the optimizer makes it."""


def refuse_non_finite_steps(optimizer: torch.optim.Optimizer) -> None:
    """The optimizer makes no step with a gradient that is not finite: it raises `NotFiniteError`. On a GPU nnU-Net's
    GradScaler leaves such steps out itself, and nothing is looked at twice."""

    def before_step(stepped: torch.optim.Optimizer, *_: Any) -> None:
        gradients = [p.grad for group in stepped.param_groups for p in group["params"] if p.grad is not None]
        if gradients and not gradients[0].is_cuda and not are_finite(gradients):
            raise NotFiniteError

    optimizer.register_step_pre_hook(before_step)


def are_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether every number is, by sums, which are not finite where one number is not."""
    sums = [tensor.detach().sum(dtype=torch.float32) for tensor in tensors if tensor.is_floating_point()]
    return not sums or bool(torch.isfinite(torch.stack(sums).sum()))


def bad_cases(batch: Batch) -> list[str]:
    """Names of the cases of a batch whose images hold NaN or infinity."""
    data: Tensor = batch["data"]
    if are_finite([data]):
        return []
    keys = [str(key) for key in batch.get("keys", range(len(data)))]
    return [key for key, image in zip(keys, data, strict=True) if not bool(torch.isfinite(image).all())]


def first_not_finite(output: TeacherOutput | None, values: Mapping[str, Tensor]) -> str:
    """What was not finite first in a step: the teacher's output, a part of the loss, or else the gradient.

    Args:
        output: the teacher's; None where it had no part in the step.
        values: of nnU-Net's loss and every term; empty where they are not known.
    """
    if output is not None and not are_finite([*output.logits, *output.features.values()]):
        return TEACHER
    for name, value in values.items():
        if not bool(torch.isfinite(value)):
            return LOSS if name == SEGMENTATION else f"the term {name}"
    return GRADIENT if values else f"{LOSS} or its gradient"


class FiniteSteps:
    """The steps of a training, and those that were left out.

    Args:
        say: told at once of every case that cannot be trained on, and of every new reason.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self.left_out: Counter[str] = Counter()  # in this epoch
        self._say = say
        self._warned_of: set[str] = set()
        self._in_a_row = 0

    def batch(self, first: Batch, others: Iterator[Batch]) -> Batch:
        """The first batch that can be trained on.

        Args:
            first: the one at hand.
            others: where to take more from.

        Raises:
            KDError: where there were too many in a row that cannot.
        """
        batch = first
        while cases := bad_cases(batch):
            for case in cases:
                what = f"the image of {case}"
                self._leave_out(
                    what,
                    f"{what} holds numbers that are not finite (NaN or infinity). Batches with it are left out and "
                    "others drawn. Mend the image and preprocess it again, or take it out of the training split.",
                )
            batch = next(others)
        return batch

    def skipped(self, what: str) -> None:
        """A step was left out because this was not finite.

        Raises:
            KDError: where there were too many in a row.
        """
        self._leave_out(what, f"{what} was not finite: the step was left out.")

    def scaled_down(self) -> None:
        """On a GPU nnU-Net has left out a step whose gradient was too large for float16, as it does now and then.

        Raises:
            KDError: where that has happened too often in a row.
        """
        self._in_a_row += 1
        self._stop_if_too_many(GRADIENT)

    def taken(self) -> None:
        """A step was made."""
        self._in_a_row = 0

    def close_epoch(self, epoch: int, steps: int) -> list[str]:
        """What the log is to say of an epoch, and a fresh count.

        Args:
            steps: of the epoch, those that were left out among them.

        Raises:
            KDError: where none was made.
        """
        if not self.left_out:
            return []
        counts = ", ".join(f"{count} for {what}" for what, count in self.left_out.most_common())
        what = self.left_out.most_common(1)[0][0]
        self.left_out.clear()
        if self._in_a_row >= steps:
            self._stop(what)
        return [f"WARNING: steps left out in epoch {epoch} because something was not finite: {counts}."]

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
            f"{what[0].upper()}{what[1:]} was not finite, and {self._in_a_row} steps in a row were left out for such "
            f"reasons. {_advice(what)} No checkpoint holds numbers that are not finite."
        )


def fill_in_losses(outputs: list[dict]) -> list[dict]:
    """What the steps of an epoch gave, where the mean loss stands for that of a step that was left out."""
    made = [float(output["loss"]) for output in outputs if np.isfinite(output["loss"])]
    mean = np.float32(np.mean(made)) if made else np.float32(np.nan)
    return [output if np.isfinite(output["loss"]) else {**output, "loss": mean} for output in outputs]


def check_weights(network: nn.Module, file: str) -> None:
    """What is about to be saved can be used.

    Raises:
        KDError: where a weight is not finite; nothing is written then.
    """
    named = [*network.named_parameters(), *network.named_buffers()]
    if are_finite(tensor for _, tensor in named):
        return
    bad = [name for name, tensor in named if not bool(torch.isfinite(tensor).all())]
    if bad:
        raise KDError(
            f"{len(bad)} of {len(named)} weights are not finite ({bad[0]} first), so {file} is not written and the one "
            "before it stays. A smaller learning rate may help (optimizer.lr in the options)."
        )


def _advice(what: str) -> str:
    if what == TEACHER:
        return "Its checkpoint is damaged, or it was trained until it broke: name another one."
    if what.startswith("the image"):
        return "Mend the images and preprocess them again, or take them out of the training split."
    if what.startswith("the term"):
        return "Give the term a smaller weight or another temperature, or leave it out."
    return "A smaller learning rate may help (optimizer.lr in the options)."
