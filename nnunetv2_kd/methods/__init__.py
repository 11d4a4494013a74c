"""Distillation methods, one file each: options, formula, what they need from the teacher, trained parts. They know
nothing of nnU-Net's files, plans, teachers or trainers."""

from nnunetv2_kd.methods.channel_wise import ChannelWise
from nnunetv2_kd.methods.class_affinity import ClassAffinity
from nnunetv2_kd.methods.displacement import Displacement
from nnunetv2_kd.methods.dist import DIST
from nnunetv2_kd.methods.feature_filtering import FeatureFiltering
from nnunetv2_kd.methods.fitnet import FitNet
from nnunetv2_kd.methods.importance_map import ImportanceMap
from nnunetv2_kd.methods.intra_class_variation import IntraClassVariation
from nnunetv2_kd.methods.lovasz import Lovasz
from nnunetv2_kd.methods.method import (
    Method,
    Methods,
    Needs,
    OnStages,
    any_needs_logits,
    methods_needing_features,
    stages_of,
    tapped_stages,
)
from nnunetv2_kd.methods.recokd import ReCoKD
from nnunetv2_kd.methods.region_affinity import RegionAffinity
from nnunetv2_kd.methods.region_graph import RegionGraph
from nnunetv2_kd.methods.region_kl import RegionKL
from nnunetv2_kd.methods.soft_dice import SoftDice
from nnunetv2_kd.methods.step import Step
from nnunetv2_kd.methods.voxel_kl import VoxelKL

# the only list: options, doctor, the docs' table and the contract tests use it
OWN_METHODS: tuple[type[Method], ...] = (
    VoxelKL,
    RegionKL,
    ChannelWise,
    ClassAffinity,
    DIST,
    SoftDice,
    Lovasz,
    ImportanceMap,
    RegionAffinity,
    RegionGraph,
    FeatureFiltering,
    IntraClassVariation,
    FitNet,
    ReCoKD,
    Displacement,
)

__all__ = [
    "OWN_METHODS",
    "Method",
    "Methods",
    "Needs",
    "OnStages",
    "Step",
    "any_needs_logits",
    "methods_needing_features",
    "stages_of",
    "tapped_stages",
]
