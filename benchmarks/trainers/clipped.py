"""The student alone with its gradients clipped at a norm of 1 instead of nnU-Net's 12, for optimizer_settings.yaml."""

from typing import Any

from torch.nn.utils import clip_grad_norm_

from nnunetv2_kd.trainers import nnUNetTrainerKDBaseline


class ClippedBaseline(nnUNetTrainerKDBaseline):
    def configure_optimizers(self) -> tuple[Any, Any]:
        optimizer, scheduler = super().configure_optimizers()
        optimizer.register_step_pre_hook(self.clip)
        return optimizer, scheduler

    def clip(self, *_: Any) -> None:
        clip_grad_norm_(self.network.parameters(), 1.0)
