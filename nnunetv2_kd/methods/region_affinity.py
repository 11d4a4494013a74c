"""Region affinity (RAD) of EMKD, arXiv 2108.09987, for any number of regions."""

import torch
from torch import Tensor

from nnunetv2_kd.methods.method import Needs, OnStages
from nnunetv2_kd.methods.step import Step
from nnunetv2_kd.tensors.shapes import require_equal


def affinity_difference(cosines_s: Tensor, cosines_t: Tensor, present: Tensor) -> Tensor:
    """Squared difference of two networks' region cosines.

    Two regions: ``mean_B (cos_s(r_0, r_1) - cos_t(r_0, r_1))^2``, as the paper and its code define it. For K regions
    (ours): per sample the mean over pairs ``i < j`` of present regions of ``(cos_s(r_i, r_j) - cos_t(r_i, r_j))^2``,
    then the mean over the batch; a sample with fewer than two present regions contributes 0.

    Args:
        cosines_s, cosines_t: ``(B, K, K)`` in [-1, 1]; the teacher's may be a mean over teachers.
        present: which regions are present ``(B, K)`` bool.

    Returns:
        Scalar in [0, 4].

    >>> student = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])  # two regions at right angles
    >>> teacher = torch.tensor([[[1.0, 0.5], [0.5, 1.0]]])
    >>> affinity_difference(student, teacher, torch.tensor([[True, True]]))
    tensor(0.2500)
    """
    require_equal(cosines_s, cosines_t, "cosines")
    if present.shape != cosines_s.shape[:2]:
        raise ValueError(
            f"expected as many regions as cosines have rows, got {tuple(present.shape)} and {tuple(cosines_s.shape)}"
        )
    pairs = (present.unsqueeze(1) & present.unsqueeze(2)).triu(diagonal=1)
    squares = (cosines_s - cosines_t.detach()).square() * pairs
    return (squares.sum(dim=(1, 2)) / pairs.sum(dim=(1, 2)).clamp(min=1)).mean()


def own_blocks(edges: Tensor, samples: int, regions: int) -> Tensor:
    """The cosines within each sample ``(B, K, K)``, out of those between all regions of a batch ``(B*K, B*K)``."""
    return edges.view(samples, regions, samples, regions).diagonal(dim1=0, dim2=2).permute(2, 0, 1)


class RegionAffinity(OnStages):
    """How similar the regions are in a stage's features (EMKD's RAD), sum over the stages."""

    name = "region_affinity"
    needs = Needs(region_cosines=True)

    def __call__(self, step: Step) -> Tensor:
        samples, regions = len(step.regions().codes), step.regions().count

        def of_stage(stage: str) -> Tensor:
            edges_s, edges_t, present = step.region_graphs(stage)
            cosines_s, cosines_t = (own_blocks(edges, samples, regions) for edges in (edges_s, edges_t))
            return affinity_difference(cosines_s, cosines_t, present.view(samples, regions))

        return torch.stack([of_stage(stage) for stage in self.stages]).sum()
