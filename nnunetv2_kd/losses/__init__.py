"""Distillation terms as plain tensor functions. They know nothing of nnU-Net, files, plans or trainers."""

from nnunetv2_kd.losses.affinity import region_affinity, region_cosines
from nnunetv2_kd.losses.importance import importance_map, importance_map_loss
from nnunetv2_kd.losses.logits import divergence, region_kl, soft_membership, voxel_kl
from nnunetv2_kd.losses.regions import at_grid, label_membership, region_membership, region_vectors

__all__ = [
    "at_grid",
    "divergence",
    "importance_map",
    "importance_map_loss",
    "label_membership",
    "region_affinity",
    "region_cosines",
    "region_kl",
    "region_membership",
    "region_vectors",
    "soft_membership",
    "voxel_kl",
]
