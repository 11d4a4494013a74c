"""The student alone with its loss times three, for optimizer.yaml. Distillation terms enlarge the loss, and with it
SGD's steps; this tests the effect of larger steps alone."""

from typing import Any

from torch import Tensor, nn

from nnunetv2_kd.trainers import nnUNetTrainerKDBaseline


class TripleLossBaseline(nnUNetTrainerKDBaseline):
    def _build_loss(self) -> nn.Module:
        return Times3(super()._build_loss())


class Times3(nn.Module):
    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, *args: Any) -> Tensor:
        return 3 * self.loss(*args)
