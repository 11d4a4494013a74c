"""Distillation terms as plain tensor functions. They know nothing of nnU-Net, files, plans or trainers."""

from nnunetv2_kd.methods.channel_wise import channel_wise
from nnunetv2_kd.methods.class_affinity import class_affinity
from nnunetv2_kd.methods.displacement import Displacement, displacement_difference, foreground_cells, stage_weights
from nnunetv2_kd.methods.feature_filtering import activation_map, feature_filtering
from nnunetv2_kd.methods.fitnet import FitNet
from nnunetv2_kd.methods.importance_map import importance_map, importance_map_loss
from nnunetv2_kd.methods.intra_class_variation import intra_class_variation
from nnunetv2_kd.methods.lovasz import lovasz
from nnunetv2_kd.methods.recokd import GlobalContext, ReCoKD, attention, region_masks
from nnunetv2_kd.methods.region_affinity import affinity_difference, region_affinity
from nnunetv2_kd.methods.region_graph import graph_difference, region_graph_loss
from nnunetv2_kd.methods.region_kl import region_kl, soft_membership
from nnunetv2_kd.methods.soft_dice import soft_dice
from nnunetv2_kd.methods.voxel_kl import divergence, voxel_kl

__all__ = [
    "Displacement",
    "FitNet",
    "GlobalContext",
    "ReCoKD",
    "activation_map",
    "affinity_difference",
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
    "lovasz",
    "region_affinity",
    "region_graph_loss",
    "region_kl",
    "region_masks",
    "soft_dice",
    "soft_membership",
    "stage_weights",
    "voxel_kl",
]
