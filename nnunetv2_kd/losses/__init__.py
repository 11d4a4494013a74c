"""Distillation terms as plain tensor functions. They know nothing of nnU-Net, files, plans or trainers."""

from nnunetv2_kd.losses.affinity import affinity_difference, region_affinity, region_cosines
from nnunetv2_kd.losses.channelwise import channel_wise
from nnunetv2_kd.losses.class_affinity import class_affinity
from nnunetv2_kd.losses.combine import Rule, as_logits, mean_affinity, mix, region_weights, voxel_weights
from nnunetv2_kd.losses.displacement import Displacement, displacement_difference, foreground_cells, stage_weights
from nnunetv2_kd.losses.filtering import activation_map, feature_filtering
from nnunetv2_kd.losses.fitnet import FitNet
from nnunetv2_kd.losses.graph import graph_difference, region_graph, region_graph_loss
from nnunetv2_kd.losses.importance import importance_map, importance_map_loss
from nnunetv2_kd.losses.logits import divergence, region_kl, soft_membership, voxel_kl
from nnunetv2_kd.losses.lovasz import lovasz
from nnunetv2_kd.losses.overlap import soft_dice
from nnunetv2_kd.losses.recokd import GlobalContext, ReCoKD, attention, region_masks
from nnunetv2_kd.losses.regions import (
    Regions,
    at_grid,
    label_regions,
    map_at_grid,
    overlapping_regions,
    region_vectors,
    unit_vectors,
)
from nnunetv2_kd.losses.variation import intra_class_variation

__all__ = [
    "Displacement",
    "FitNet",
    "GlobalContext",
    "ReCoKD",
    "Regions",
    "Rule",
    "activation_map",
    "affinity_difference",
    "as_logits",
    "at_grid",
    "attention",
    "channel_wise",
    "class_affinity",
    "displacement_difference",
    "divergence",
    "feature_filtering",
    "foreground_cells",
    "graph_difference",
    "importance_map",
    "importance_map_loss",
    "intra_class_variation",
    "label_regions",
    "lovasz",
    "map_at_grid",
    "mean_affinity",
    "mix",
    "overlapping_regions",
    "region_affinity",
    "region_cosines",
    "region_graph",
    "region_graph_loss",
    "region_kl",
    "region_masks",
    "region_vectors",
    "region_weights",
    "soft_dice",
    "soft_membership",
    "stage_weights",
    "unit_vectors",
    "voxel_kl",
    "voxel_weights",
]
