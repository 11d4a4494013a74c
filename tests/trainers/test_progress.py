import csv
import math

import pytest
import torch

from nnunetv2_kd.errors import KDError
from nnunetv2_kd.regions.labels import Labels
from nnunetv2_kd.teachers.pseudo_dice import pseudo_dice
from nnunetv2_kd.trainers.progress import TermGuard, TermHistory, check_first_terms

TRAINED = {"rad": True, "kl": True}


def values(**terms):
    return {"segmentation": torch.tensor(-0.5), **{name: torch.tensor(float(v)) for name, v in terms.items()}}


def add(history, factor, gradients=None, **terms):
    """One iteration."""
    given = values(**terms)
    weighted = {name: factor * weight * given[name] for name, weight in history.weights.items()}
    history.add(given, weighted, factor, {}, gradients or {})


def seen_in(iterations):
    guard = TermGuard(iterations=len(iterations))
    complete = [guard.add(values(**terms), dict.fromkeys(terms, True)) for terms in iterations]
    assert complete == [False] * (len(iterations) - 1) + [True]
    assert guard.add(values(rad=1), {"rad": True}) is False
    return guard.seen


def test_guard_stops_a_term_that_stays_zero():
    seen = seen_in([{"rad": 0, "kl": 1}] * 3)
    assert seen == {"rad": [0, 0, 0], "kl": [1, 1, 1]}
    with pytest.raises(KDError, match="rad was exactly 0 in the first 3 iterations"):
        check_first_terms([seen], TRAINED)


def test_guard_lets_a_late_term_pass():
    check_first_terms([seen_in([{"rad": 0}, {"rad": 0}, {"rad": 0.1}])], TRAINED)


def test_guard_asks_all_workers():
    """Under DDP, the first workers may get only random patches without any foreground."""
    check_first_terms([seen_in([{"rad": 0}] * 2), seen_in([{"rad": 0.1}] * 2)], TRAINED)


def test_guard_stops_a_term_that_is_never_finite():
    with pytest.raises(KDError, match="kl was not finite in any of the first 2 iterations"):
        check_first_terms([seen_in([{"kl": math.nan}, {"kl": math.inf}])], TRAINED)
    check_first_terms([seen_in([{"kl": math.nan}, {"kl": 1}])], TRAINED)


def test_guard_stops_a_term_without_a_gradient():
    guard = TermGuard(iterations=2)
    for _ in range(2):
        guard.add(values(rad=1, kl=1), {"rad": False, "kl": True})
    with pytest.raises(KDError, match="rad had no gradient in any of the first 2 iterations"):
        check_first_terms([guard.seen], guard.learnable)


def test_history_means_and_shares(tmp_path):
    """Half of the epoch has full weight, half none: the share is that of the entire epoch."""
    history = TermHistory(str(tmp_path), {"kl": 2.0})
    add(history, 1.0, kl=1)
    add(history, 0.0, kl=3)
    row = history.close_epoch(0, history.means())
    assert row["kl"] == 2
    assert row["factor"] == 0.5
    assert row["kl_share"] == pytest.approx(1 / 1.5)
    with (tmp_path / "kd_progress.csv").open() as stream:
        assert [float(r["kl"]) for r in csv.DictReader(stream)] == [2]


def test_plot_can_be_read_after_nnunet_has_set_its_fonts(tmp_path):
    import matplotlib.image
    import matplotlib.pyplot as plt

    history = TermHistory(str(tmp_path), {"kl": 2.0})
    add(history, 1.0, kl=1)
    history.close_epoch(0, history.means())
    before = matplotlib.image.imread(history.png_file)
    with plt.rc_context({"font.size": 40, "axes.labelsize": 40}):
        history._plot_epochs()
    assert (matplotlib.image.imread(history.png_file) == before).all()


def test_history_of_an_interrupted_epoch_is_dropped(tmp_path):
    history = TermHistory(str(tmp_path), {"kl": 1.0})
    for epoch in range(3):
        add(history, 1.0, kl=epoch + 1)
        history.close_epoch(epoch, history.means())
    resumed = TermHistory(str(tmp_path), {"kl": 1.0})
    resumed.resume(2)
    add(resumed, 1.0, kl=9)
    resumed.close_epoch(2, resumed.means())
    assert [row["kl"] for row in resumed.rows] == [1, 2, 9]
    fresh = TermHistory(str(tmp_path), {"kl": 1.0})
    fresh.resume(0)
    assert fresh.rows == []


def test_history_leaves_out_a_skipped_step_and_stops_where_nothing_is_finite(tmp_path):
    history = TermHistory(str(tmp_path), {"kl": 1.0})
    for value in (math.nan, 2, 4):
        add(history, 1.0, kl=value)
    assert history.close_epoch(0, history.means())["kl"] == 3
    add(history, 1.0, kl=math.nan)
    with pytest.raises(KDError, match="In epoch 1 kl was never finite"):
        history.close_epoch(1, history.means())


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


def test_shares_of_the_gradient_and_advice(tmp_path):
    """The gradient of nnU-Net's loss has length 1, that of one term 0.001 and that of another 30, at half of the
    schedule's factor."""
    history = TermHistory(str(tmp_path), {"kl": 2.0, "rad": 0.5})
    gradients = {"segmentation": torch.tensor(1.0), "kl": torch.tensor(0.0005), "rad": torch.tensor(15.0)}
    for epoch in range(2):
        add(history, 0.5, gradients, kl=1, rad=1)
        row = history.close_epoch(epoch, history.means())
        assert row["rad_gradient_share"] == pytest.approx(15 / 16.0005)
        lines = history.advice(row)
        if epoch == 0:
            assert "kl 0.0 %, rad 96.8 %; nnU-Net's loss has the rest" in lines[0]
            # at full factor kl has 0.001 of 31.001; a tenth of all with the rest as it is: 2 * (1 / 9) * 31 / 0.001
            assert f"A weight of {2 / 9 * 31 / 0.001:.2g} instead of 2 would bring it to 10 %" in lines[1]
            assert f"A weight of {0.5 * 1.001 / 30:.2g} instead of 0.5 would bring it to 50 %" in lines[2]
        else:
            assert lines == []  # once is enough


def test_a_term_without_any_gradient_is_reported(tmp_path):
    history = TermHistory(str(tmp_path), {"kl": 1.0})
    add(history, 1.0, {"segmentation": torch.tensor(1.0), "kl": torch.tensor(0.0)}, kl=1)
    assert "kl has no gradient on the student at all" in history.advice(history.close_epoch(0, history.means()))[1]


CSV = "epoch,segmentation,kl,kl_weighted\n0.0,1.0,2.0,2.0\n1.0,0.9,1.9,1.9\n"


@pytest.mark.parametrize(
    "content", [CSV[:-20], CSV[:60], "", "epoch\n", "a,b\n1,2\n", "epoch,kl\n0.0,many\n", "\0\0\0", "\xff"]
)
def test_progress_that_cannot_be_read_is_set_aside_and_said(tmp_path, content):
    file = tmp_path / "kd_progress.csv"
    file.write_bytes(content.encode("latin-1"))
    history = TermHistory(str(tmp_path), {"kl": 1.0})
    (message,) = history.resume(2)
    assert message.startswith(f"WARNING: {file} cannot be read and was set aside as kd_progress.csv.unreadable1")
    assert (tmp_path / "kd_progress.csv.unreadable1").read_bytes() == content.encode("latin-1")
    assert history.rows == []
    add(history, 1.0, kl=1)
    history.close_epoch(2, history.means())  # goes on
    assert [row["epoch"] for row in csv.DictReader(file.open())] == ["2.0"]


def test_progress_that_is_whole_is_read(tmp_path):
    (tmp_path / "kd_progress.csv").write_text(CSV)
    history = TermHistory(str(tmp_path), {"kl": 1.0})
    assert history.resume(1) == []
    assert [row["epoch"] for row in history.rows] == [0]
    assert TermHistory(str(tmp_path / "new"), {"kl": 1.0}).resume(1) == []
