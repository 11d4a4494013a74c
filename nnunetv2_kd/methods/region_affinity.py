"""Region affinity (RAD) of EMKD, arXiv 2108.09987, for any number of regions."""

from torch import Tensor

from nnunetv2_kd.regions import Regions, region_cosines
from nnunetv2_kd.tensors.shapes import require_equal


def affinity_difference(cosines_s: Tensor, cosines_t: Tensor, present: Tensor) -> Tensor:
    """Squared difference of two networks' region cosines, see `region_affinity`.

    Args:
        cosines_s, cosines_t: ``(B, K, K)`` in [-1, 1]; the teacher's may be a mean over teachers.
        present: which regions are present ``(B, K)`` bool.

    Returns:
        Scalar in [0, 4].
    """
    require_equal(cosines_s, cosines_t, "cosines")
    if present.shape != cosines_s.shape[:2]:
        raise ValueError(
            f"expected as many regions as cosines have rows, got {tuple(present.shape)} and {tuple(cosines_s.shape)}"
        )
    pairs = (present.unsqueeze(1) & present.unsqueeze(2)).triu(diagonal=1)
    squares = (cosines_s - cosines_t.detach()).square() * pairs
    return (squares.sum(dim=(1, 2)) / pairs.sum(dim=(1, 2)).clamp(min=1)).mean()


def region_affinity(student: Tensor, teacher: Tensor, regions: Regions) -> Tensor:
    """Squared difference of student's and teacher's region cosines.

    Two regions: ``mean_B (cos_s(r_0, r_1) - cos_t(r_0, r_1))^2``, as the paper and its code define it. For K regions
    (ours): per sample the mean over pairs ``i < j`` of present regions of ``(cos_s(r_i, r_j) - cos_t(r_i, r_j))^2``,
    then the mean over the batch; a sample with fewer than two present regions contributes 0.

    Args:
        student, teacher: features ``(B, C, *S)`` of one stage; channels and grids may differ, as each network's
            features are pooled at their own grid.
        regions: of the same batch, at a grid that is a multiple of both.

    Returns:
        Scalar in [0, 4].
    """
    cosines_s, present = region_cosines(student, regions)
    cosines_t, _ = region_cosines(teacher.detach(), regions)
    return affinity_difference(cosines_s, cosines_t, present)
