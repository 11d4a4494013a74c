import csv
import math

import pytest
import torch

from nnunetv2_kd.errors import KDError
from nnunetv2_kd.trainers.loss import Labels
from nnunetv2_kd.trainers.pseudo_dice import pseudo_dice
from nnunetv2_kd.trainers.watch import TermGuard, TermHistory


def values(**terms):
    return {"segmentation": torch.tensor(-0.5), **{name: torch.tensor(float(v)) for name, v in terms.items()}}


def test_guard_stops_a_term_that_stays_zero():
    guard = TermGuard(iterations=3)
    guard.check(values(rad=0, kl=1))
    guard.check(values(rad=0, kl=1))
    with pytest.raises(KDError, match="rad was exactly 0 in the first 3 iterations"):
        guard.check(values(rad=0, kl=1))


def test_guard_lets_a_late_term_pass():
    guard = TermGuard(iterations=3)
    for value in (0, 0, 0.1, 0, 0, 0, 0):
        guard.check(values(rad=value))


def test_guard_stops_a_term_that_is_never_finite():
    guard = TermGuard(iterations=2)
    guard.check(values(kl=math.nan))
    with pytest.raises(KDError, match="kl was not finite in any of the first 2 iterations"):
        guard.check(values(kl=math.inf))


def test_history_means_and_shares(tmp_path):
    history = TermHistory(str(tmp_path), {"kl": 2.0})
    history.add(values(kl=1))
    history.add(values(kl=3))
    row = history.close_epoch(0, 0.5, history.means())
    assert row["kl"] == 2
    assert row["kl_share"] == pytest.approx(2 / 2.5)
    with (tmp_path / "kd_progress.csv").open() as stream:
        assert [float(r["kl"]) for r in csv.DictReader(stream)] == [2]
    assert (tmp_path / "kd_progress.png").read_bytes().startswith(b"\x89PNG")


def test_history_of_an_interrupted_epoch_is_dropped(tmp_path):
    history = TermHistory(str(tmp_path), {"kl": 1.0})
    for epoch in range(3):
        history.add(values(kl=epoch + 1))
        history.close_epoch(epoch, 1.0, history.means())
    resumed = TermHistory(str(tmp_path), {"kl": 1.0})
    resumed.resume(2)
    resumed.add(values(kl=9))
    resumed.close_epoch(2, 1.0, resumed.means())
    assert [row["kl"] for row in resumed.rows] == [1, 2, 9]
    fresh = TermHistory(str(tmp_path), {"kl": 1.0})
    fresh.resume(0)
    assert fresh.rows == []


def test_history_stops_at_nan(tmp_path):
    history = TermHistory(str(tmp_path), {"kl": 1.0})
    history.add(values(kl=math.nan))
    with pytest.raises(KDError, match="mean of kl is not finite"):
        history.close_epoch(0, 1.0, history.means())


def test_pseudo_dice_closed_form():
    """Class 1: one voxel right, one missed (2/3). Class 2: an ignored voxel would be wrong, none is left (nan)."""
    target = torch.tensor([1, 1, 0, 9]).view(1, 1, 2, 2)
    predicted = torch.tensor([1, 0, 0, 2]).view(1, 2, 2)
    logits = torch.nn.functional.one_hot(predicted, 3).movedim(-1, 1).float()
    dice = pseudo_dice([(logits, target)], Labels(3, False, 9))
    assert dice[0] == pytest.approx(2 / 3)
    assert math.isnan(dice[1])


def test_pseudo_dice_of_regions():
    target = torch.tensor([[1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]]).view(1, 3, 2, 2).bool()
    logits = torch.tensor([[5.0, 5, -5, 5], [-5, -5, -5, -5]]).view(1, 2, 2, 2)
    assert pseudo_dice([(logits, target)], Labels(2, True, 9)) == [1.0, 0.0]
