"""Against values worked out by hand or by other code."""

import numpy as np
import pytest

from nnunetv2_kd.leaderboard.statistics import (
    Intervals,
    foreground_mean,
    gap_closed,
    holm,
    intervals,
    pareto,
    per_case,
    rank_shares,
    signed_rank,
)

NAN = float("nan")


def constant(*values: float, cases: int = 10) -> np.ndarray:
    """Models that have the same Dice in every case of both structures."""
    return np.repeat(np.array(values), 2 * cases).reshape(len(values), cases, 2)


def test_foreground_mean_is_nnunets():
    dice = np.array([[1.0, NAN], [0.5, 0.2], [0.0, NAN]])
    assert foreground_mean(dice) == pytest.approx((0.5 + 0.2) / 2)
    assert foreground_mean(np.array([[0.4, NAN], [0.6, NAN]])) == pytest.approx(0.5)
    assert np.isnan(foreground_mean(np.full((3, 2), NAN)))
    np.testing.assert_allclose(per_case(dice), [1.0, 0.35, 0.0])


def test_intervals_against_a_plain_loop():
    rng = np.random.default_rng(3)
    dice = rng.beta(8, 2, size=(2, 30, 2))
    found = intervals(dice, resamples=4000)
    loop = [foreground_mean(dice[:, rng.integers(30, size=30)]) for _ in range(4000)]
    low, high = np.quantile(loop, [0.025, 0.975], axis=0)
    np.testing.assert_allclose(found.low, low, atol=0.005)
    np.testing.assert_allclose(found.high, high, atol=0.005)
    np.testing.assert_allclose(found.mean, dice.mean(axis=(1, 2)))
    assert found.resampled.shape == (2, 4000)


def test_intervals_are_seeded_and_paired():
    dice = np.random.default_rng(0).random((2, 12, 2))
    dice[1] = dice[0] - 0.1
    first, again = intervals(dice), intervals(dice)
    np.testing.assert_array_equal(first.resampled, again.resampled)
    np.testing.assert_allclose(first.resampled[0] - first.resampled[1], 0.1)
    assert not np.array_equal(first.resampled, intervals(dice, seed=1).resampled)


def test_intervals_of_one_case_and_of_a_structure_that_is_rare():
    one = intervals(constant(0.5, 0.7, cases=1))
    np.testing.assert_allclose(one.mean, [0.5, 0.7])
    assert np.isnan(one.low).all()
    assert one.resampled.shape == (2, 0)
    rare = constant(0.5, cases=8)
    rare[0, 1:, 1] = NAN
    assert not np.isnan(intervals(rare).low).any()


def test_signed_rank_by_hand():
    # six differences of one sign: of 2^6 sign patterns two are as extreme
    assert signed_rank(np.arange(1, 7) / 10, np.zeros(6)) == pytest.approx(2 / 64)
    # ranks 1 to 4, rank 1 negative: sums 9 and 1; sums of at most 1 are those of {} and {1}, and mirrored
    assert signed_rank(np.array([-0.1, 0.2, 0.3, 0.4]), np.zeros(4)) == pytest.approx(4 / 16)
    assert signed_rank(np.ones(5), np.ones(5)) == 1.0
    assert np.isnan(signed_rank(np.array([0.5]), np.array([0.4])))
    assert signed_rank(np.array([*np.arange(1, 7) / 10, NAN]), np.zeros(7)) == pytest.approx(2 / 64)


def test_holm_by_hand():
    np.testing.assert_allclose(holm(np.array([0.01, 0.04, 0.03])), [0.03, 0.06, 0.06])
    np.testing.assert_allclose(holm(np.array([0.5, NAN, 0.9])), [1.0, NAN, 1.0])
    assert holm(np.array([])).size == 0


def test_rank_shares_by_hand():
    resampled = np.array([[0.9, 0.8, 0.9, 0.9], [0.8, 0.9, 0.7, 0.9], [0.1, 0.1, 0.8, 0.1]])
    np.testing.assert_allclose(rank_shares(resampled), [[0.75, 0.25, 0], [0.5, 0.25, 0.25], [0, 0.25, 0.75]])
    assert np.isnan(rank_shares(np.empty((2, 0)))).all()


def test_gap_closed_of_constant_models():
    found = intervals(constant(0.9, 0.5, 0.7, 0.95, 0.4))
    half = gap_closed(0, 1, 2, found)
    assert (half.share, half.low, half.high) == pytest.approx((0.5, 0.5, 0.5))
    assert gap_closed(0, 1, 3, found).share == pytest.approx(1.125)  # better than its teacher
    assert gap_closed(0, 1, 4, found).share == pytest.approx(-0.25)  # worse than alone
    undefined = gap_closed(4, 1, 2, found)
    assert undefined.share is None
    assert undefined.reason == "the teacher is not better than the student alone"
    assert gap_closed(1, 1, 2, found).share is None


def test_gap_closed_has_no_interval_where_the_teacher_may_be_no_better():
    mean = np.array([0.52, 0.5, 0.51])
    resampled = np.array([[0.52, 0.49, 0.55, 0.5], [0.5, 0.5, 0.5, 0.5], [0.51, 0.5, 0.52, 0.5]])
    gap = gap_closed(0, 1, 2, Intervals(mean, mean, mean, resampled))
    assert gap.share == pytest.approx(0.5)
    assert gap.low is None
    assert "may not be better" in gap.reason
    assert gap_closed(0, 1, 2, intervals(constant(0.9, 0.5, 0.7, cases=1))).reason == "fewer than two cases"


def test_pareto_by_hand():
    costs, values = np.array([1, 2, 2, 3, NAN, 1]), np.array([0.5, 0.7, 0.6, 0.7, 0.9, NAN])
    assert pareto(costs, values).tolist() == [True, True, False, False, False, False]
    assert pareto(np.array([1, 1]), np.array([0.5, 0.5])).tolist() == [True, True]
