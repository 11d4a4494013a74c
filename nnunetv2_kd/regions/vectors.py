"""What a network's features look like in every region: mean vectors, and the cosines between them."""

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunetv2_kd.regions.membership import Regions
from nnunetv2_kd.tensors.shapes import require_same_batch


def unit_vectors(vectors: Tensor, dim: int) -> Tensor:
    """Vectors scaled to unit length along ``dim``. A zero vector stays 0 and gets no gradient.

    Its direction is undefined, and the gradient through a clamped length would be 1e12 times too large.
    """
    dead = vectors.detach().abs().amax(dim=dim, keepdim=True) == 0
    return F.normalize(vectors.masked_fill(dead, 0), dim=dim)


def region_vectors(features: Tensor, regions: Regions) -> tuple[Tensor, Tensor]:
    """Mean feature vector of every region: ``r_k = sum_v m_k F / sum_v m_k``.

    Args:
        features: ``(B, C, *S)``.
        regions: of the same batch, at a grid that is a multiple of ``S``.

    Returns:
        The vectors ``(B, K, C)`` float32, and which regions are present ``(B, K)`` bool. A region without voxels is
        absent, and its vector is 0.
    """
    require_same_batch(features, regions.codes.unsqueeze(1), "features and regions")
    mass = regions.mass(features.shape[2:])
    present = mass > 0
    return regions.sums(features) / torch.where(present, mass, 1).unsqueeze(-1), present


def region_cosines(features: Tensor, regions: Regions) -> tuple[Tensor, Tensor]:
    """How similar the regions are in a network's features: ``cos(r_i, r_j)`` for every pair.

    Args:
        features: ``(B, C, *S)``.
        regions: of the same batch, at a grid that is a multiple of ``S``.

    Returns:
        ``(B, K, K)`` float32 in [-1, 1], and which regions are present ``(B, K)`` bool.

    >>> from nnunetv2_kd.regions.membership import label_regions
    >>> labels = torch.tensor([[[[0.0, 0.0, 1.0, 1.0]]]])
    >>> features = torch.tensor([[[[1.0, 1.0, 0.0, 0.0]], [[0.0, 0.0, 1.0, 1.0]]]])  # two channels
    >>> region_cosines(features, label_regions(labels, num_classes=2))[0]
    tensor([[[1., 0.],
             [0., 1.]]])
    """
    vectors, present = region_vectors(features, regions)
    unit = unit_vectors(vectors, dim=-1)
    return unit @ unit.transpose(1, 2), present


def region_graph(features: Tensor, regions: Regions) -> tuple[Tensor, Tensor]:
    """How similar the regions of all samples of a batch are in a network's features (ours).

    Args:
        features: ``(B, C, *S)``.
        regions: of the same batch, at a grid that is a multiple of ``S``.

    Returns:
        The edges, cosines of the region vectors ``(B * K, B * K)`` float32 in [-1, 1], 0 at absent regions; and which
        nodes are present ``(B * K,)`` bool. Region ``k`` of sample ``b`` is node ``b * K + k``.
    """
    vectors, present = region_vectors(features, regions)
    unit = unit_vectors(vectors.flatten(0, 1), dim=1)
    return unit @ unit.T, present.flatten()
