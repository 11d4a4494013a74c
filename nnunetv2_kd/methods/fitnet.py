"""FitNets, arXiv 1412.6550: the student's features, after an adapter, should equal the teacher's."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunetv2_kd.methods.adapters import module_key, pointwise, require_same_stages
from nnunetv2_kd.methods.method import Needs, OnStages
from nnunetv2_kd.methods.step import Step
from nnunetv2_kd.tensors.shapes import require_equal


class FitNetLoss(nn.Module):
    """``sum_stages mean (adapter(F_s) - F_t)^2`` with bias-free 1x1 convolutions as adapters (source: hint training
    with a convolutional regressor, here over several stages at once).

    No labels are used, so every voxel counts, even ignored ones. The adapters have parameters, which must be optimised.

    Args:
        student_channels, teacher_channels: number of channels of every stage by its name.
        dims: 2 or 3 spatial dimensions.
    """

    def __init__(self, student_channels: Mapping[str, int], teacher_channels: Mapping[str, int], dims: int) -> None:
        super().__init__()
        require_same_stages(student_channels, teacher_channels)
        self.stages = tuple(student_channels)
        self.adapters = nn.ModuleDict(
            {module_key(s): pointwise(student_channels[s], teacher_channels[s], dims) for s in self.stages}
        )

    def forward(self, features_s: Mapping[str, Tensor], features_t: Mapping[str, Tensor]) -> Tensor:
        """
        Args:
            features_s, features_t: ``(B, C, *S)`` by stage; channels may differ, grids may not.

        Returns:
            Scalar, at least 0.
        """
        return torch.stack([self._stage(stage, features_s[stage], features_t[stage]) for stage in self.stages]).sum()

    def _stage(self, stage: str, student: Tensor, teacher: Tensor) -> Tensor:
        adapted = self.adapters[module_key(stage)](student.float())
        require_equal(adapted, teacher, f"adapted and teacher's features of {stage}")
        return F.mse_loss(adapted, teacher.detach().float())


class FitNet(OnStages):
    """The features, after a trained 1x1 convolution: mean squared error, sum over the stages."""

    name = "fitnet"
    needs = Needs(features=True)
    value_when_identical = None  # the adapters start at random
    counts_ignored_voxels = True

    def trained_part(self, channels_s: Mapping[str, int], channels_t: Mapping[str, int], dims: int) -> nn.Module:
        return FitNetLoss(channels_s, channels_t, dims)

    def __call__(self, step: Step) -> Tensor:
        return step.trained_part(self.name)(*step.stage_features(self.stages))
