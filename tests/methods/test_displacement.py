"""Displacements between the samples of a batch. What holds for all terms with parameters is in test_adapted.py."""

import numpy as np
import pytest
import torch

from nnunetv2_kd.methods.displacement import DisplacementLoss, displacement_difference, foreground_cells, stage_weights
from nnunetv2_kd.regions.membership import label_regions
from tests.methods import reference_rivals
from tests.methods.reference import area_average
from tests.methods.test_adapted import SPATIAL, STUDENT, TEACHER, adapted, features, labels


@pytest.mark.parametrize("spatial", SPATIAL)
@pytest.mark.parametrize("same_width", [False, True])
def test_displacement_is_the_reference(spatial, same_width, rng):
    widths = TEACHER if same_width else STUDENT
    torch.manual_seed(0)
    term = DisplacementLoss(widths, TEACHER, len(spatial), grid=2, ratio=0.7)
    assert len(list(term.parameters())) == (0 if same_width else 2)
    f_s, f_t, m = features(widths, spatial, rng), features(TEACHER, spatial, rng), labels(spatial, rng)
    expected = 0.0
    for k, stage in enumerate(widths):
        foreground = area_average(m.dense().numpy()[:, 1:], k + 1).sum(axis=1)
        s = f_s[stage].numpy() if same_width else adapted(term, stage, f_s[stage])
        e_s, e_t = (
            np.array([reference_rivals.cells(f, mask, 2).ravel() for f, mask in zip(all_f, foreground, strict=True)])
            for all_f in (s, f_t[stage].numpy())
        )
        expected += (k + 1) / 3 * reference_rivals.displacement_difference(e_s, e_t, 0.7)
    assert float(term(f_s, f_t, m).detach()) == pytest.approx(expected, rel=1e-3)


def test_displacement_across_grids(rng):
    """Student at half the teacher's grid, with the teacher's features averaged: the same embeddings."""
    f_t, m = torch.randn(3, 2, 8, 8, generator=rng), label_regions(torch.ones(3, 1, 8, 8), 2)
    term = DisplacementLoss({"a": 2}, {"a": 2}, 2, grid=4)
    assert float(term({"a": torch.nn.functional.avg_pool2d(f_t, 2)}, {"a": f_t}, m)) == pytest.approx(0, abs=1e-9)


def test_displacement_closed_form():
    """Teacher's samples at 0, 1 and 3 on a line, pairs 1, 3, 2, mean 2; student's at 0, 2 and 3, pairs 2, 3, 1."""
    e_t, e_s = torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([[0.0], [2.0], [3.0]])
    directions = (0.5 * 0.5**2 + 0 + 0.5 * 0.5**2) / 3
    assert float(displacement_difference(e_s, e_t, 0.0)) == pytest.approx(directions)
    assert float(displacement_difference(e_s, e_t, 2.0)) == pytest.approx(3 * directions)


def test_displacement_does_not_see_scale_or_offset(rng):
    e = torch.randn(4, 6, generator=rng)
    assert float(displacement_difference(5 * e + 3, e)) == pytest.approx(0, abs=1e-9)


def test_two_samples_have_no_lengths_and_one_has_no_pair(rng):
    e_s, e_t = torch.randn(2, 6, generator=rng), torch.randn(2, 6, generator=rng).requires_grad_()
    assert float(displacement_difference(e_s, e_t, 0.0)) > 0
    assert float(displacement_difference(e_s, e_t, 9.0)) == pytest.approx(float(displacement_difference(e_s, e_t, 0.0)))
    one = e_s[:1].clone().requires_grad_()
    loss = displacement_difference(one, e_t[:1])
    loss.backward()
    assert float(loss.detach()) == 0
    assert one.grad.abs().sum() == 0
    assert e_t.grad is None


def test_stage_weights():
    assert stage_weights(6) == (0.05, 0.10, 0.10, 0.15, 0.25, 0.35)
    assert stage_weights(2) == pytest.approx((1 / 3, 2 / 3))
    for count in range(1, 9):
        weights = stage_weights(count)
        assert sum(weights) == pytest.approx(1)
        assert list(weights) == sorted(weights)


def test_an_empty_cell_is_zero(rng):
    f, foreground = torch.randn(1, 3, 4, 4, generator=rng), torch.zeros(1, 1, 4, 4)
    foreground[..., 0, 1] = 1
    cells = foreground_cells(f, foreground, (2, 2))
    np.testing.assert_allclose(cells[0, :, 0, 0], f[0, :, 0, 1], rtol=1e-5)
    assert cells[0, :, 1].abs().sum() + cells[0, :, 0, 1].abs().sum() == 0
