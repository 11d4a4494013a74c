"""Region graph (RGD), guided by the abstract of MSKD, doi 10.1016/j.compbiomed.2023.107284. The formulas are ours: the
paper's are not public."""

import torch
from pydantic import Field
from torch import Tensor

from nnunetv2_kd.methods.method import Needs, OnStages
from nnunetv2_kd.methods.step import Step
from nnunetv2_kd.tensors.shapes import require_equal


def graph_difference(edges_s: Tensor, edges_t: Tensor, present: Tensor, hops: int = 3) -> Tensor:
    """Squared difference of two networks' region graphs, near and far (ours).

    With ``A = (E + 1) / 2`` between present nodes, self-loops of 1, strengths ``d_i = sum_j A_ij``, ``D = diag(d)`` and
    ``P = D^-1/2 A D^-1/2``: the mean over ``h = 1..hops`` of the mean over entries of ``(P_s^h - P_t^h)^2``, plus the
    mean over nodes of the squared difference of ``d / mean(d)``. Absent nodes count in no sum and no mean.

    Args:
        edges_s, edges_t: cosines ``(N, N)``; the teacher's may be a mean over teachers.
        present: which nodes are present ``(N,)`` bool.
        hops: at least 1.

    Returns:
        Scalar, at least 0; 0 if fewer than two nodes are present.
    """
    if hops < 1:
        raise ValueError(f"expected at least 1 hop, got {hops}")
    require_equal(edges_s, edges_t, "edges")
    if edges_s.shape != (len(present), len(present)):
        raise ValueError(f"expected as many nodes as edges, got {tuple(present.shape)} and {tuple(edges_s.shape)}")
    nodes = present.float()
    count = nodes.sum().clamp(min=1)
    step_s, strength_s = _walk(edges_s, nodes)
    step_t, strength_t = _walk(edges_t.detach(), nodes)
    reached_s, reached_t = step_s, step_t
    loss = (reached_s - reached_t).square().sum() / count**2
    for _ in range(hops - 1):
        reached_s, reached_t = reached_s @ step_s, reached_t @ step_t
        loss = loss + (reached_s - reached_t).square().sum() / count**2
    return loss / hops + (strength_s - strength_t).square().sum() / count


def _walk(edges: Tensor, nodes: Tensor) -> tuple[Tensor, Tensor]:
    """``P``, and every node's strength over the mean strength; both 0 at absent nodes."""
    loops = torch.eye(len(nodes), device=edges.device)
    adjacency = ((edges.float() + 1) / 2 * (1 - loops) + loops) * nodes.outer(nodes)
    # at least 1 at a present node, because of its self-loop
    degree = adjacency.sum(dim=1)
    root = torch.where(nodes > 0, degree, 1).rsqrt()
    mean = degree.sum() / nodes.sum().clamp(min=1)
    return adjacency * root.outer(root), degree / torch.where(mean > 0, mean, 1)


class RegionGraph(OnStages):
    """How similar the regions of all samples are in a stage's features, over several hops (MSKD's RGD), sum
    over the stages."""

    name = "region_graph"
    needs = Needs(region_cosines=True)

    hops: int = Field(3, ge=1, le=10, description="powers of the graph that are compared")

    def __call__(self, step: Step) -> Tensor:
        return torch.stack([graph_difference(*step.region_graphs(stage), self.hops) for stage in self.stages]).sum()
