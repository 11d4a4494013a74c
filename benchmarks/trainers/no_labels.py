"""Distillation without nnU-Net's loss, and so without labels, on images as they are or mixed in pairs, for
no_loss.yaml."""

from typing import Any

import torch
from torch import Tensor, nn

from nnunetv2_kd.trainers import nnUNetTrainerKD


class NoLabelsKD(nnUNetTrainerKD):
    def _build_loss(self) -> nn.Module:
        return Times0(super()._build_loss())


class MixedImagesKD(NoLabelsKD):
    """As in Beyer et al., arXiv 2106.05237: every image of the batch is mixed with another one, in a share that is
    drawn anew, and both networks see the mixture."""

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        images = batch["data"]
        share = torch.rand(len(images), *[1] * (images.ndim - 1))
        mixed = share * images + (1 - share) * images[torch.randperm(len(images))]
        return super().train_step(batch | {"data": mixed})


class Times0(nn.Module):
    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, *args: Any) -> Tensor:
        return 0 * self.loss(*args)
