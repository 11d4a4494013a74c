"""The running mean of a student's weights, which is used instead of them for validation, checkpoints and prediction."""

from collections.abc import Iterator
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


class WeightAverage:
    """Exponential mean of a network's weights and buffers.

    Outside training epochs, the network itself holds the mean, so that nnU-Net's validation, checkpoints and prediction
    use it. The trained weights are then kept here.

    Args:
        network: not wrapped in DDP, not compiled, and without hooks.
        decay: of the mean. At first the decay is smaller, ``(1 + n) / (10 + n)`` after ``n`` steps, so that a short
            training does not keep its random weights.
        kept: the `state` from the checkpoint whose ``network_weights`` the network now has; None for a fresh start.
    """

    def __init__(self, network: nn.Module, decay: float, kept: dict[str, Any] | None = None) -> None:
        def update(averaged: Any, current: Any, steps: Tensor | int) -> None:
            now = min(decay, (1 + int(steps)) / (10 + int(steps)))
            get_ema_multi_avg_fn(now)(averaged, current, steps)

        self._network = network
        self._other = AveragedModel(network, multi_avg_fn=update, use_buffers=True)
        self._in_network = True  # the mean; False while an epoch trains
        if kept is not None:
            self._other.module.load_state_dict(kept["weights"])
            self._other.n_averaged.fill_(kept["steps"])

    def follow(self, optimizer: torch.optim.Optimizer) -> None:
        """Update the mean after each of the optimizer's steps."""
        optimizer.register_step_post_hook(lambda *_: self._other.update_parameters(self._network))

    def train(self) -> None:
        """Put the trained weights into the network."""
        if self._in_network:
            self._swap()

    def evaluate(self) -> None:
        """Put the mean into the network."""
        if not self._in_network:
            self._swap()

    def state(self) -> dict[str, Any]:
        """What a resumed training needs besides the mean, while the mean is in the network."""
        return {"weights": self._other.module.state_dict(), "steps": int(self._other.n_averaged)}

    @torch.no_grad()
    def _swap(self) -> None:
        for mine, others in zip(_tensors(self._network), _tensors(self._other.module), strict=True):
            kept = mine.clone()
            mine.copy_(others)
            others.copy_(kept)
        self._in_network = not self._in_network


def _tensors(network: nn.Module) -> Iterator[Tensor]:
    return chain(network.parameters(), network.buffers())
