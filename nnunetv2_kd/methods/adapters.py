"""1x1 convolutions that give a student's features as many channels as a teacher's."""

from collections.abc import Mapping

from torch import nn


def module_key(stage: str) -> str:
    """A stage's name without dots, which `nn.ModuleDict` forbids in keys."""
    return stage.replace(".", "_")


def pointwise(channels_in: int, channels_out: int, dims: int) -> nn.Module:
    """A bias-free 1x1 convolution in 2 or 3 dimensions."""
    if dims not in (2, 3):
        raise ValueError(f"expected 2 or 3 spatial dimensions, got {dims}")
    return (nn.Conv2d if dims == 2 else nn.Conv3d)(channels_in, channels_out, kernel_size=1, bias=False)


def require_same_stages(student_channels: Mapping[str, int], teacher_channels: Mapping[str, int]) -> None:
    """Raise a ValueError that names the stages of both networks, if they differ."""
    if list(student_channels) != list(teacher_channels):
        raise ValueError(
            f"expected the same stages in the same order, got {list(student_channels)} and {list(teacher_channels)}"
        )
