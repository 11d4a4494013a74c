"""Trainers whose part of nnU-Net's loss is multiplied: by three for the student alone of optimizer.yaml, and by zero,
so that no label counts, for no_loss.yaml."""

from typing import Any

import torch
from torch import Tensor, nn

from nnunetv2_kd.trainers import nnUNetTrainerKD, nnUNetTrainerKDBaseline


class TripleLossBaseline(nnUNetTrainerKDBaseline):
    """Distillation terms enlarge the loss, and with it SGD's steps; this tests the effect of larger steps alone."""

    def _build_loss(self) -> nn.Module:
        return Scaled(super()._build_loss(), 3)


class NoLabelsKD(nnUNetTrainerKD):
    def _build_loss(self) -> nn.Module:
        return Scaled(super()._build_loss(), 0)


class MixedImagesKD(NoLabelsKD):
    """As in Beyer et al., arXiv 2106.05237: every image of the batch is mixed with another one, in a share that is
    drawn anew, and both networks see the mixture."""

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        images = batch["data"]
        share = torch.rand(len(images), *[1] * (images.ndim - 1))
        mixed = share * images + (1 - share) * images[torch.randperm(len(images))]
        return super().train_step(batch | {"data": mixed})


class Scaled(nn.Module):
    def __init__(self, loss: nn.Module, factor: float) -> None:
        super().__init__()
        self.loss, self.factor = loss, factor

    def forward(self, *args: Any) -> Tensor:
        return self.factor * self.loss(*args)
