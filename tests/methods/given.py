"""Regions given by hand, and the formulas on regions' cosines called with features."""

import torch

from nnunetv2_kd.methods.region_affinity import affinity_difference
from nnunetv2_kd.methods.region_graph import graph_difference
from nnunetv2_kd.regions import region_cosines, region_graph
from nnunetv2_kd.regions.membership import label_regions


def regions_of(membership):
    """From a membership ``(B, K, *S)`` of 0 and 1, at most one region per voxel."""
    count = membership.shape[1]
    none = membership.sum(dim=1, keepdim=True) == 0
    return label_regions(torch.where(none, count, membership.argmax(dim=1, keepdim=True)), count, ignore_label=count)


def region_affinity(student, teacher, regions):
    """The method's formula on features."""
    (cosines_s, present), (cosines_t, _) = region_cosines(student, regions), region_cosines(teacher.detach(), regions)
    return affinity_difference(cosines_s, cosines_t, present)


def region_graph_loss(student, teacher, regions, hops=3):
    """The method's formula on features."""
    (edges_s, present), (edges_t, _) = region_graph(student, regions), region_graph(teacher.detach(), regions)
    return graph_difference(edges_s, edges_t, present, hops)
