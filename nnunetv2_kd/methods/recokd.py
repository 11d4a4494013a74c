"""ReCo-KD, arXiv 2601.08301: region-aware features (MS-SARD) and global context (MS-CA)."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from nnunetv2_kd.methods.adapters import module_key, pointwise, require_same_stages
from nnunetv2_kd.methods.method import Needs, OnStages
from nnunetv2_kd.methods.recokd_sums import attention_pooling, sizes, softmax_inside, sums
from nnunetv2_kd.methods.step import Step
from nnunetv2_kd.regions import Regions
from nnunetv2_kd.tensors.shapes import require_same_batch

ATTENTION_TEMPERATURE = 0.5


def attention(over_channels: Tensor, over_voxels: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
    """Where and in which channels a stage is active (source; restricted to labelled voxels: ours).

    ``S = V softmax_v(mean_c |F| / 0.5)``, ``Ch = C softmax_c(mean_v |F| / 0.5)``.

    Args:
        over_channels: ``sum_c |F|``, ``(B, V)`` float32.
        over_voxels: ``sum_v |F|`` over the voxels that count, ``(B, C)`` float32.
        inside: ``(B, V)`` float32, 1 at the voxels that count, 0 at the others.

    Returns:
        ``S`` ``(B, V)``, of mean 1 over the voxels that count and 0 at the others, and ``Ch`` ``(B, C)`` of mean 1.
    """
    count, channels = inside.sum(dim=1, keepdim=True), over_voxels.shape[1]
    spatial = count * softmax_inside(over_channels / (channels * ATTENTION_TEMPERATURE), inside)
    mean = over_voxels / count.clamp(min=1)
    return spatial, channels * (mean / ATTENTION_TEMPERATURE).softmax(dim=1)


def region_masks(regions: Regions, size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """``M_fg = sum_{k>=1} m_k / |m_k|`` and ``M_bg = m_0 / |m_0|`` (source; fractional membership: ours).

    A small region weighs as much as a large one.

    Args:
        regions: region 0 is the background.
        size: the grid, of ``V`` cells.

    Returns:
        Two masks ``(B, V)``, each with the number of its present regions as its sum.
    """
    mass = regions.mass(size)
    shares = 1 / torch.where(mass > 0, mass, 1)
    is_background = torch.arange(regions.count, device=mass.device) == 0
    masks = regions.spread(torch.stack((shares * ~is_background, shares * is_background), dim=2), size).flatten(2)
    return masks[:, 0], masks[:, 1]


class GlobalContext(nn.Module):
    """What GCNet's block adds to features, ``W(sum_v softmax_v(w . F) F)``, arXiv 1904.11492 (source).

    ``W`` is a linear layer to half the channels (half: ours), a layer norm, a ReLU, and a linear layer. The last layer
    starts at 0, as in GCNet, so that a pair of blocks starts by comparing the features themselves.

    Args:
        channels: of the features.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(channels // 2, 2)  # a layer norm over a single channel is always 0
        self.score = nn.Linear(channels, 1)
        last = nn.Linear(hidden, channels)
        self.transform = nn.Sequential(nn.Linear(channels, hidden), nn.LayerNorm(hidden), nn.ReLU(), last)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, features: Tensor, inside: Tensor, weight: Tensor | None = None) -> Tensor:
        """
        Args:
            features: ``(B, C, V)``; or, with ``weight``, ``(B, C', V)`` from before the 1x1 convolution.
            inside: ``(B, V)`` float32, 1 at the voxels that make up the context, 0 at the others.
            weight: of that convolution, ``(C, C')``. It is applied after the sum over voxels, which is linear.

        Returns:
            What the block adds to every voxel's features, ``(B, C)``.
        """
        score = self.score.weight[0] if weight is None else self.score.weight[0] @ weight
        context = attention_pooling(features, score, self.score.bias, inside)
        return self.transform(context if weight is None else context @ weight.T)


class ReCoKDLoss(nn.Module):
    """``sum_k 2^(-1.2 k) (MS-SARD + MS-CA)`` over stages (source).

    MS-CA is the mean squared error between the two networks' features, each after a global-context block of its own.
    Both blocks are trained; the teacher is not. The weight is 1 at the first stage given; the caller orders the stages
    by depth and leaves out the deepest, as the authors do. Adapters and blocks have parameters that must be optimised.

    Args:
        student_channels, teacher_channels: number of channels of every stage by its name, from full resolution down.
        dims: 2 or 3 spatial dimensions.
    """

    def __init__(self, student_channels: Mapping[str, int], teacher_channels: Mapping[str, int], dims: int) -> None:
        super().__init__()
        require_same_stages(student_channels, teacher_channels)
        self.stages = tuple(student_channels)
        widths = {module_key(s): (student_channels[s], teacher_channels[s]) for s in self.stages}
        self.adapters = nn.ModuleDict({s: pointwise(c_s, c_t, dims) for s, (c_s, c_t) in widths.items()})
        self.context_s = nn.ModuleDict({s: GlobalContext(c_t) for s, (_, c_t) in widths.items()})
        self.context_t = nn.ModuleDict({s: GlobalContext(c_t) for s, (_, c_t) in widths.items()})

    def forward(self, features_s: Mapping[str, Tensor], features_t: Mapping[str, Tensor], regions: Regions) -> Tensor:
        """
        Args:
            features_s, features_t: ``(B, C, *S)`` by stage; channels may differ, grids may not.
            regions: of the same batch, region 0 the background, at a grid that is a multiple of every stage's.

        Returns:
            Scalar, at least 0; 0 if no voxel belongs to a region.
        """
        terms = [
            2 ** (-1.2 * k) * self._stage(stage, features_s[stage], features_t[stage], regions)
            for k, stage in enumerate(self.stages)
        ]
        return torch.stack(terms).sum()

    def _stage(self, stage: str, student: Tensor, teacher: Tensor, regions: Regions) -> Tensor:
        require_same_batch(student, teacher, f"features of {stage}")
        require_same_batch(teacher, regions.codes.unsqueeze(1), "features and regions")
        layer: Any = self.adapters[module_key(stage)]  # a pointwise convolution
        adapter, size = layer.weight.flatten(1), teacher.shape[2:]
        if (len(adapter), *student.shape[2:]) != teacher.shape[1:]:
            adapted = (len(student), len(adapter), *student.shape[2:])
            raise ValueError(
                f"expected the adapted and the teacher's features of {stage} to have equal shapes, got {adapted} and "
                f"{tuple(teacher.shape)}"
            )
        inside = (regions.inside(size).flatten(1) > 0).float()
        return self._sard_and_context(
            module_key(stage),
            student.flatten(2),
            teacher.detach().flatten(2),
            adapter,
            region_masks(regions, size),
            inside,
        )

    def _sard_and_context(
        self, key: str, student: Tensor, teacher: Tensor, adapter: Tensor, masks: Sequence[Tensor], inside: Tensor
    ) -> Tensor:
        """MS-SARD and MS-CA of one stage.

        MS-SARD: foreground and background each ``sum M S_t Ch_t (F_s - F_t)^2 / (C sum M)``, plus
        ``mean |Ch_s - Ch_t| + mean |S_s - S_t|`` (source; ours: L1 as a mean, and every part first per sample, then
        averaged over the batch). A sample without foreground (or background) contributes 0 to that part.

        MS-CA: ``mean (F_s - F_t + e)^2``, where ``e`` is what the student's block adds minus what the teacher's adds.
        Its ``(F_s - F_t)^2`` is summed together with MS-SARD's.

        Args:
            student: ``(B, C', V)``.
            teacher: ``(B, C, V)``.
            adapter: ``(C, C')``.
            masks: of foreground and background ``(B, V)``, see `region_masks`.
            inside: ``(B, V)`` float32, which voxels belong to any region; the others count nowhere.
        """
        count, channels = inside.sum(dim=1), teacher.shape[1]
        some = count.clamp(min=1)
        spatial_t, channel_t = attention(*sizes(teacher, inside), inside)
        totals = [mask.sum(dim=1, keepdim=True) for mask in masks]
        shares = sum(mask / torch.where(total > 0, total, 1) for mask, total in zip(masks, totals, strict=True))
        found = sums(student, adapter, teacher, channel_t, some.unsqueeze(1) * shares * spatial_t, inside)
        spatial_s, channel_s = attention(found.over_channels, found.over_voxels, inside)
        added = self.context_s[key](student, inside, adapter) - self.context_t[key](teacher, inside)
        squares = found.squares + (2 * added * found.differences).sum(dim=1) + count * added.square().sum(dim=1)
        loss = (channel_s - channel_t).abs().mean(dim=1) + (spatial_s - spatial_t).abs().sum(dim=1) / some
        return (loss + squares / (channels * some)).mean()


class ReCoKD(OnStages):
    """Features weighted by region, attention and global context, after trained convolutions (ReCo-KD)."""

    name = "recokd"
    needs = Needs(features=True)
    value_when_identical = None  # the adapters start at random

    stages: tuple[str, ...] = Field(("encoder.:-1",), min_length=1, description="stages that are compared")

    def trained_part(self, channels_s: Mapping[str, int], channels_t: Mapping[str, int], dims: int) -> nn.Module:
        return ReCoKDLoss(channels_s, channels_t, dims)

    def __call__(self, step: Step) -> Tensor:
        return step.trained_part(self.name)(*step.stage_features(self.stages), step.regions())
