"""The region graph and its cosines. Tests that hold for all terms on regions' features are in test_regional.py."""

import numpy as np
import pytest
import torch

from nnunetv2_kd.methods.region_affinity import affinity_difference
from nnunetv2_kd.methods.region_graph import graph_difference
from nnunetv2_kd.regions.membership import label_regions
from nnunetv2_kd.regions.vectors import region_cosines, region_graph, unit_vectors
from tests.methods import reference, reference_rivals
from tests.methods.given import region_affinity, region_graph_loss, regions_of
from tests.methods.test_regional import SPATIAL, features, membership_of


@pytest.mark.parametrize("spatial", SPATIAL)
@pytest.mark.parametrize("factor", [1, 2])
@pytest.mark.parametrize("hops", [1, 3])
def test_region_graph_is_the_reference(spatial, factor, hops, rng):
    f_s, f_t = features(3, tuple(s // factor for s in spatial), rng), features(6, spatial, rng)
    m = membership_of(spatial, rng)
    fine = m.dense().numpy()
    expected = reference_rivals.region_graph_loss(
        f_s.numpy(), f_t.numpy(), reference.area_average(fine, factor), fine, hops
    )
    assert float(region_graph_loss(f_s, f_t, m, hops)) == pytest.approx(expected, rel=1e-3)


def test_graph_of_two_nodes_closed_form():
    """Student's nodes opposite (A = I, P = I), teacher's equal (A = 1, P = 1/2): every entry off by a half, at any hop,
    and both nodes as strong as their mean."""
    m = label_regions(torch.tensor([0, 1]).view(1, 1, 1, 2), 2)
    student, teacher = torch.tensor([1.0, -1.0]).view(1, 1, 1, 2), torch.ones(1, 1, 1, 2)
    assert float(region_graph_loss(student, teacher, m)) == pytest.approx(0.25)


def test_graph_spans_the_batch():
    """Two samples of one region each: the edge is between them."""
    m = regions_of(torch.ones(2, 1, 2, 2))
    student, teacher = torch.ones(2, 2, 2, 2), torch.ones(2, 2, 2, 2)
    student[1] *= -1
    edges, present = region_graph(student, m)
    torch.testing.assert_close(edges, torch.tensor([[1.0, -1.0], [-1.0, 1.0]]))
    assert present.tolist() == [True, True]
    assert float(region_graph_loss(student, teacher, m)) == pytest.approx(0.25)


def test_affinity_is_the_difference_of_cosines(rng):
    f_s, f_t, m = features(3, (4, 4), rng), features(5, (4, 4), rng), membership_of((4, 4), rng)
    (c_s, present), (c_t, _) = region_cosines(f_s, m), region_cosines(f_t, m)
    expected = reference.region_affinity(f_s.numpy(), f_t.numpy(), m.dense().numpy(), m.dense().numpy())
    assert float(affinity_difference(c_s, c_t, present)) == pytest.approx(expected, rel=1e-3)
    assert float(region_affinity(f_s, f_t, m)) == float(affinity_difference(c_s, c_t, present))


def test_a_single_node_is_no_graph(rng):
    m = torch.zeros(2, 2, 4, 4)
    m[0, 0] = 1
    f_s, f_t = features(3, (4, 4), rng), features(3, (4, 4), rng)
    assert float(region_graph_loss(f_s, f_t, regions_of(m))) == 0


def test_weak_nodes_have_finite_gradients():
    """Every node is opposite to as many others as possible: its strength is 1, from its self-loop alone."""
    edges = torch.tensor([[1.0, -1.0], [-1.0, 1.0]], requires_grad=True)
    teacher = torch.ones(2, 2, requires_grad=True)
    graph_difference(edges, teacher, torch.tensor([True, True])).backward()
    assert torch.isfinite(edges.grad).all()
    assert edges.grad[0, 1] != 0
    assert teacher.grad is None


def test_a_node_is_its_own_neighbour_whatever_its_cosine(rng):
    """The cosine of a region without activity to itself is 0 and not 1."""
    edges_s, edges_t = torch.rand(3, 3, generator=rng), torch.rand(3, 3, generator=rng)
    present = torch.ones(3, dtype=torch.bool)
    expected = graph_difference(edges_s, edges_t, present)
    torch.testing.assert_close(graph_difference(edges_s.fill_diagonal_(0), edges_t, present), expected)


def test_unit_vectors_leave_zero_alone():
    v = torch.tensor([[3.0, 4.0], [0.0, 0.0]], requires_grad=True)
    unit = unit_vectors(v, dim=1)
    unit.sum().backward()
    np.testing.assert_allclose(unit.detach(), [[0.6, 0.8], [0, 0]], rtol=1e-6)
    assert v.grad[1].tolist() == [0, 0]
    assert v.grad[0].abs().sum() > 0
