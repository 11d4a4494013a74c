"""ReCo-KD, arXiv 2601.08301: region-aware features (MS-SARD) and global context (MS-CA)."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nnunetv2_kd.losses.adapters import module_key, pointwise, require_same_stages
from nnunetv2_kd.losses.regions import Regions
from nnunetv2_kd.losses.shapes import require_equal, require_same_batch

ATTENTION_TEMPERATURE = 0.5
VALUES_AT_ONCE = 2**20  # of a stage's features


def attention(features: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
    """Where and in which channels a stage is active (source; restricted to labelled voxels: ours).

    ``S = V softmax_v(mean_c |F| / 0.5)``, ``Ch = C softmax_c(mean_v |F| / 0.5)``.

    Args:
        features: ``(B, C, V)`` float32.
        inside: ``(B, V)`` bool, which voxels count.

    Returns:
        ``S`` ``(B, V)``, of mean 1 over the voxels that count and 0 at the others, and ``Ch`` ``(B, C)`` of mean 1.
    """
    size = features.abs()
    count = inside.sum(dim=1, keepdim=True)
    spatial = count * _softmax_inside(size.mean(dim=1) / ATTENTION_TEMPERATURE, inside)
    mean = (size * inside.unsqueeze(1)).sum(dim=2) / count.clamp(min=1)
    return spatial, features.shape[1] * (mean / ATTENTION_TEMPERATURE).softmax(dim=1)


def region_masks(regions: Regions, size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """``M_fg = sum_{k>=1} m_k / |m_k|`` and ``M_bg = m_0 / |m_0|`` (source; fractional membership: ours).

    A small region weighs as much as a large one.

    Args:
        regions: region 0 is the background.
        size: the grid, of ``V`` cells.

    Returns:
        Two ``(B, V)``, whose sums are the numbers of regions present.
    """
    mass = regions.mass(size)
    shares = 1 / torch.where(mass > 0, mass, 1)
    is_background = torch.arange(regions.count, device=mass.device) == 0
    masks = regions.spread(torch.stack((shares * ~is_background, shares * is_background), dim=2), size).flatten(2)
    return masks[:, 0], masks[:, 1]


def sard(student: Tensor, teacher: Tensor, masks: Sequence[Tensor], inside: Tensor) -> Tensor:
    """MS-SARD of one stage: the feature difference by region and by the teacher's attention, plus the attentions' own.

    Foreground and background each ``sum M S_t Ch_t (F_s - F_t)^2 / (C sum M)``, plus
    ``mean |Ch_s - Ch_t| + mean |S_s - S_t|`` (source; that L1 is a mean, and that every part is taken per sample and
    then over the batch, is ours).

    Args:
        student: features through the adapter ``(B, C, V)`` float32.
        teacher: features ``(B, C, V)`` float32.
        masks: of foreground and background ``(B, V)``, see `region_masks`.
        inside: ``(B, V)`` bool, which voxels belong to any region; the others count nowhere.

    Returns:
        Scalar, at least 0. A sample without foreground (or background) contributes 0 to that part.
    """
    spatial_s, channel_s = attention(student, inside)
    spatial_t, channel_t = attention(teacher, inside)
    squares = (channel_t.unsqueeze(2) * (student - teacher).square()).mean(dim=1) * spatial_t
    loss = (channel_s - channel_t).abs().mean()
    loss = loss + _mean_inside((spatial_s - spatial_t).abs(), inside)
    for mask in masks:
        total = mask.sum(dim=1)
        loss = loss + ((mask * squares).sum(dim=1) / torch.where(total > 0, total, 1)).mean()
    return loss


class GlobalContext(nn.Module):
    """``F + W(sum_v softmax_v(w . F) F)``, the block of GCNet, arXiv 1904.11492 (source).

    ``W`` is linear to half the width, layer norm, ReLU, linear (that width: ours). Its last layer starts at 0, as in
    GCNet, so that a pair of blocks starts by comparing the features themselves.

    Args:
        channels: width of the features.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(channels // 2, 2)  # a layer norm over a single channel is 0 whatever comes in
        self.score = nn.Linear(channels, 1)
        last = nn.Linear(hidden, channels)
        self.transform = nn.Sequential(nn.Linear(channels, hidden), nn.LayerNorm(hidden), nn.ReLU(), last)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, features: Tensor, inside: Tensor) -> Tensor:
        """
        Args:
            features: ``(B, C, V)`` float32.
            inside: ``(B, V)`` bool, which voxels make up the context.

        Returns:
            ``(B, C, V)``.
        """
        # (B, C, V) -> (B, V)
        scores = torch.einsum("bcv,c->bv", features, self.score.weight[0]) + self.score.bias
        context = torch.einsum("bcv,bv->bc", features, _softmax_inside(scores, inside))
        return features + self.transform(context).unsqueeze(2)


class ReCoKD(nn.Module):
    """``sum_k 2^(-1.2 k) (MS-SARD + MS-CA)`` over stages (source).

    MS-CA is the mean squared error between the two networks' features after a global-context block each; both blocks
    are trained, the teacher's features are not. The weight is 1 at the first stage given; the caller orders the stages
    by depth and leaves the deepest out, as the authors do. Adapters and blocks are parameters: they must be optimised.

    Args:
        student_channels, teacher_channels: width of every stage by its name, from full resolution down.
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
            Scalar, at least 0; 0 where no voxel belongs to a region.
        """
        terms = [
            2 ** (-1.2 * k) * self._stage(stage, features_s[stage], features_t[stage], regions)
            for k, stage in enumerate(self.stages)
        ]
        return torch.stack(terms).sum()

    def _stage(self, stage: str, student: Tensor, teacher: Tensor, regions: Regions) -> Tensor:
        require_same_batch(student, teacher, f"features of {stage}")
        require_same_batch(teacher, regions.codes.unsqueeze(1), "features and regions")
        size = teacher.shape[2:]
        inside = regions.inside(size).flatten(1) > 0
        masks = region_masks(regions, size)
        # a few samples at a time, computed anew for the gradient: a dozen copies of all features otherwise
        few = max(1, VALUES_AT_ONCE // teacher[0].numel())
        parts = zip(*(tensor.split(few) for tensor in (student, teacher, *masks, inside)), strict=True)
        values = [
            len(part[0]) * checkpoint(self._samples, stage, *part, use_reentrant=False, preserve_rng_state=False)
            for part in parts
        ]
        return torch.stack(values).sum() / len(student)

    def _samples(
        self, stage: str, student: Tensor, teacher: Tensor, foreground: Tensor, background: Tensor, inside: Tensor
    ) -> Tensor:
        """The mean over some samples."""
        key = module_key(stage)
        adapted = self.adapters[key](student.float())
        require_equal(adapted, teacher, f"adapted and teacher's features of {stage}")
        f_s, f_t = adapted.flatten(2), teacher.detach().float().flatten(2)
        context_s, context_t = self.context_s[key](f_s, inside), self.context_t[key](f_t, inside)
        return sard(f_s, f_t, (foreground, background), inside) + _mean_inside(
            (context_s - context_t).square().mean(dim=1), inside
        )


def _softmax_inside(scores: Tensor, inside: Tensor) -> Tensor:
    """Softmax over the voxels that count ``(B, V)``; 0 at the others, and everywhere where none counts."""
    return scores.masked_fill(~inside, -1e30).softmax(dim=1) * inside


def _mean_inside(values: Tensor, inside: Tensor) -> Tensor:
    """Mean over a sample's voxels that count, then over the batch."""
    return ((values * inside).sum(dim=1) / inside.sum(dim=1).clamp(min=1)).mean()
