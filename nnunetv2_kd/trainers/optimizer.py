"""Optimizer and learning rate, if the options ask for others than nnU-Net's own.

nnU-Net's optimizer (SGD, 0.01, momentum 0.99) was tuned for networks of 30 M parameters and 250,000 iterations. Within
a few thousand iterations, it hardly gets a network of a few ten thousand parameters started.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from nnunetv2_kd.config import OptimizerOptions
from nnunetv2_kd.networks.cost import network_cost

SMALL = 1_000_000  # parameters; measured with 31 k to 750 k
MOMENTUM = 0.99  # nnU-Net's
POLY_EXPONENT = 0.9  # nnU-Net's
WARMUP_START = 0.01  # a step with factor 0 would be wasted


def default_optimizer(plans: dict[str, Any], configuration: str, dataset_json: dict[str, Any]) -> OptimizerOptions:
    """AdamW for shrunken networks below `SMALL`, nnU-Net's own optimizer for all others; see docs/results.md.

    Args:
        plans: the student's.
    """
    made = plans["kd_student"]
    is_shrunken = made["width"].get(configuration, 1) < 1 or made["convs_per_stage"] is not None
    is_small = network_cost(plans, configuration, dataset_json).params < SMALL
    return OptimizerOptions(name="adamw" if is_shrunken and is_small else "nnunet")


def make_optimizer(
    parameters: Iterable[nn.Parameter], options: OptimizerOptions, epochs: int, iterations: int
) -> tuple[torch.optim.Optimizer, "LearningRate"]:
    """What nnU-Net's ``configure_optimizers`` returns.

    Args:
        options: with any name except ``nnunet``.
        epochs, iterations: number of epochs, and of iterations per epoch.
    """
    lr, weight_decay = options.resolved()
    optimizer: torch.optim.Optimizer
    if options.name == "adamw":
        optimizer = torch.optim.AdamW(parameters, lr, weight_decay=weight_decay)
    else:
        optimizer = torch.optim.SGD(parameters, lr, weight_decay=weight_decay, momentum=MOMENTUM, nesterov=True)
    return optimizer, LearningRate(optimizer, options.schedule, options.warmup, epochs, iterations)


def lr_factor(progress: float, schedule: str, warmup: float) -> float:
    """Factor on the learning rate.

    Args:
        progress: share of the training that is done, in [0, 1].
        schedule: ``poly`` and ``cosine`` fall to 0, ``constant`` stays at 1.
        warmup: share of the training over which the factor first rises to 1.

    >>> [round(lr_factor(progress, "poly", 0.0), 2) for progress in (0.0, 0.5, 1.0)]
    [1.0, 0.54, 0.0]
    """
    if progress < warmup:
        return WARMUP_START + (1 - WARMUP_START) * progress / warmup
    done = (progress - warmup) / (1 - warmup)
    if schedule == "poly":
        return (1 - done) ** POLY_EXPONENT
    return 0.5 * (1 + math.cos(math.pi * done)) if schedule == "cosine" else 1.0


class LearningRate(LRScheduler):
    """A learning rate that changes with every step of its optimizer. nnU-Net calls ``step(epoch)`` at the start of each
    epoch. This sets the position again, which is all that a resumed training needs, and makes up for steps that AMP
    skipped."""

    def __init__(
        self, optimizer: torch.optim.Optimizer, schedule: str, warmup: float, epochs: int, iterations: int
    ) -> None:
        self.schedule, self.warmup = schedule, warmup
        self.epochs, self.iterations = epochs, iterations
        self.position = 0.0  # in epochs
        super().__init__(optimizer)
        optimizer.register_step_post_hook(lambda *_: self.step(self.position + 1 / self.iterations))

    def step(self, epoch: float | None = None) -> None:
        self.position = self.position if epoch is None else epoch
        factor = lr_factor(min(self.position / self.epochs, 1.0), self.schedule, self.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = self.base_lrs[0] * factor
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]


def describe_optimizer(optimizer: torch.optim.Optimizer, scheduler: Any) -> dict[str, Any]:
    """Describe any optimizer and its learning rate, for the record."""
    group = optimizer.param_groups[0]
    known = ("momentum", "nesterov", "betas", "weight_decay")
    own = isinstance(scheduler, LearningRate)
    return {
        "name": type(optimizer).__name__,
        "lr": scheduler.base_lrs[0] if own else getattr(scheduler, "initial_lr", None),
        **{key: list(group[key]) if key == "betas" else group[key] for key in known if key in group},
        "schedule": scheduler.schedule if own else type(scheduler).__name__.removesuffix("LRScheduler").lower(),
        "warmup": scheduler.warmup if own else 0.0,
    }
