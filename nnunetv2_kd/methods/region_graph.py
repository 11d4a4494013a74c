"""Region graph (RGD), guided by the abstract of MSKD, doi 10.1016/j.compbiomed.2023.107284. The formulas are ours: the
paper's are not public."""

import torch
from torch import Tensor

from nnunetv2_kd.regions import Regions, region_graph
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
        Scalar, at least 0; 0 where fewer than two nodes are present.
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


def region_graph_loss(student: Tensor, teacher: Tensor, regions: Regions, hops: int = 3) -> Tensor:
    """`graph_difference` of the student's and the teacher's `region_graph` (RGD; ours).

    Args:
        student, teacher: features ``(B, C, *S)`` of one stage; channels and grids may differ, as each network's
            features are pooled at their own grid.
        regions: of the same batch, at a grid that is a multiple of both.
        hops: at least 1.

    Returns:
        Scalar, at least 0.
    """
    edges_s, present = region_graph(student, regions)
    edges_t, _ = region_graph(teacher.detach(), regions)
    return graph_difference(edges_s, edges_t, present, hops)


def _walk(edges: Tensor, nodes: Tensor) -> tuple[Tensor, Tensor]:
    """``P``, and every node's strength over the mean strength; both 0 at absent nodes."""
    loops = torch.eye(len(nodes), device=edges.device)
    adjacency = ((edges.float() + 1) / 2 * (1 - loops) + loops) * nodes.outer(nodes)
    # at least 1 where a node is present, by its self-loop
    degree = adjacency.sum(dim=1)
    root = torch.where(nodes > 0, degree, 1).rsqrt()
    mean = degree.sum() / nodes.sum().clamp(min=1)
    return adjacency * root.outer(root), degree / torch.where(mean > 0, mean, 1)
