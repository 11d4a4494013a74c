"""Which region each voxel belongs to, and what a network's features look like there: sums, mean vectors and cosines
over any number of regions, on CPU and GPU. The names below are the interface; everything else is internal."""

from nnunetv2_kd.regions.known import Known, known_heads
from nnunetv2_kd.regions.labels import Labels
from nnunetv2_kd.regions.membership import Regions, at_grid, label_regions, map_at_grid, overlapping_regions
from nnunetv2_kd.regions.vectors import region_cosines, region_graph, region_vectors, unit_vectors

__all__ = [
    "Known",
    "Labels",
    "Regions",
    "at_grid",
    "known_heads",
    "label_regions",
    "map_at_grid",
    "overlapping_regions",
    "region_cosines",
    "region_graph",
    "region_vectors",
    "unit_vectors",
]
