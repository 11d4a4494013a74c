"""How to read nnU-Net's targets of a dataset."""

from dataclasses import dataclass

from torch import Tensor

from nnunetv2_kd.regions.membership import Regions, label_regions, overlapping_regions


@dataclass(frozen=True)
class Labels:
    """How to read nnU-Net's targets of a dataset.

    Attributes:
        num_heads: number of segmentation heads ``K``.
        has_regions: whether the heads are overlapping regions (sigmoid); the targets then have a channel per region.
        ignore_label: its value in ordinary labels. With regions, any value means that the last channel marks ignored
            voxels.
    """

    num_heads: int
    has_regions: bool
    ignore_label: int | None

    def regions(self, target: Tensor) -> Regions:
        """Regions of a target, see `nnunetv2_kd.regions.membership`."""
        if self.has_regions:
            return overlapping_regions(target, self.ignore_label is not None)
        return label_regions(target, self.num_heads, self.ignore_label)

    def valid(self, target: Tensor) -> Tensor | None:
        """``(B, 1, *S)`` bool, False at ignored voxels; None if the dataset has no ignore label."""
        if self.ignore_label is None:
            return None
        return ~target[:, -1:].bool() if self.has_regions else target != self.ignore_label
