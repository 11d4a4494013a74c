"""Regions: which voxel belongs to what, at any grid, and what a network's features look like there."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunetv2_kd.losses.shapes import require_same_batch


def label_membership(target: Tensor, num_classes: int, ignore_label: int | None = None) -> Tensor:
    """Regions of ordinary labels: one per class, background included.

    Args:
        target: ``(B, 1, *S)``, class indices in ``[0, num_classes)`` or ``ignore_label``; any numeric dtype.
        num_classes: number of classes ``K``, background included.
        ignore_label: voxels with this value belong to no region.

    Returns:
        ``(B, K, *S)`` float32, 0 or 1.
    """
    labels = target[:, 0].long()
    valid = torch.ones_like(labels, dtype=torch.bool) if ignore_label is None else labels != ignore_label
    membership = torch.zeros((len(labels), num_classes, *labels.shape[1:]), device=labels.device)
    return membership.scatter_(1, torch.where(valid, labels, 0).unsqueeze(1), valid.float().unsqueeze(1))


def region_membership(target: Tensor, has_ignore: bool = False) -> Tensor:
    """Regions of nnU-Net's region-based training: the complement of their union as background, then every region.

    Args:
        target: ``(B, R, *S)`` of 0/1, or ``(B, R + 1, *S)`` whose last channel marks ignored voxels.
        has_ignore: whether that last channel is there.

    Returns:
        ``(B, 1 + R, *S)`` float32, 0 or 1; ignored voxels are 0 everywhere.
    """
    target = target.float()
    regions = target[:, :-1] if has_ignore else target
    background = 1 - regions.amax(dim=1, keepdim=True)
    membership = torch.cat((background, regions), dim=1)
    return membership * (1 - target[:, -1:]) if has_ignore else membership


def at_grid(membership: Tensor, size: Sequence[int]) -> Tensor:
    """Membership at a coarser grid, as the area average, so that a small structure keeps a fractional mass.

    Args:
        membership: ``(B, K, *S)`` in [0, 1].
        size: the spatial size wanted, no larger than ``S``.

    Returns:
        ``(B, K, *size)`` in [0, 1]; its sum over voxels times the cell size is that of ``membership``.
    """
    if tuple(membership.shape[2:]) == tuple(size):
        return membership
    pool = F.adaptive_avg_pool2d if membership.ndim == 4 else F.adaptive_avg_pool3d
    return pool(membership, tuple(size))


def map_at_grid(maps: Tensor, size: Sequence[int]) -> Tensor:
    """A map of one value per voxel at another grid, linearly interpolated.

    Args:
        maps: ``(B, *S)``.
        size: the spatial size wanted.

    Returns:
        ``(B, *size)``.
    """
    mode = "bilinear" if maps.ndim == 3 else "trilinear"
    return F.interpolate(maps.unsqueeze(1), size=tuple(size), mode=mode, align_corners=False)[:, 0]


def unit_vectors(vectors: Tensor, dim: int) -> Tensor:
    """Vectors at unit length along ``dim``; a vector of 0 stays 0, and has no gradient.

    The direction of 0 is undefined, and the gradient through its clamped length would be 1e12 times too large.
    """
    dead = vectors.detach().abs().amax(dim=dim, keepdim=True) == 0
    return F.normalize(vectors.masked_fill(dead, 0), dim=dim)


def region_vectors(features: Tensor, membership: Tensor) -> tuple[Tensor, Tensor]:
    """Mean feature vector of every region: ``r_k = sum_v m_k F / sum_v m_k``.

    Args:
        features: ``(B, C, *S)``.
        membership: ``(B, K, *S')`` in [0, 1] with ``S'`` at least ``S``; brought to the grid of the features.

    Returns:
        The vectors ``(B, K, C)`` float32, and which regions are present ``(B, K)`` bool. A region without voxels is
        absent, and its vector is 0.
    """
    require_same_batch(features, membership, "features and membership")
    membership = at_grid(membership.float(), features.shape[2:]).flatten(2)
    mass = membership.sum(dim=2)
    sums = torch.einsum("bkv,bcv->bkc", membership, features.float().flatten(2))
    present = mass > 0
    return sums / torch.where(present, mass, 1).unsqueeze(-1), present
