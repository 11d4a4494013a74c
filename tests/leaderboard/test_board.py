import json

import numpy as np
import pytest
import torch

from nnunetv2_kd.errors import KDError
from nnunetv2_kd.leaderboard.board import make_boards
from nnunetv2_kd.leaderboard.columns import fold_names
from nnunetv2_kd.leaderboard.footnotes import footnotes
from nnunetv2_kd.leaderboard.request import LeaderboardRequest
from nnunetv2_kd.leaderboard.summary import summary
from tests.scored_models import Results, eroded, record, shifted, truth_of, without, write


def board_of(results, **options):
    return make_boards(LeaderboardRequest(["7"], torch.device("cpu"), **options), lambda line: None)[0]


def entry_of(board, trainer):
    return next(entry for entry in board.entries if entry.model.trainer == trainer)


def test_numbers_are_nnunets(family):
    """Exactly, not nearly."""
    board = board_of(family)
    for entry in board.entries:
        summary = json.loads((entry.model.folder / "fold_0" / "validation" / "summary.json").read_text())
        assert entry.scores.mean_dice == summary["foreground_mean"]["Dice"]
        assert entry.scores.dice == {"a": summary["mean"]["1"]["Dice"], "b": summary["mean"]["2"]["Dice"]}


def test_comparisons(family):
    board = board_of(family)
    teacher, alone = entry_of(board, "nnUNetTrainer"), entry_of(board, "nnUNetTrainerKDBaseline")
    region, seen = entry_of(board, "nnUNetTrainerRegionKD"), entry_of(board, "nnUNetTrainerKD")
    assert [entry.rank for entry in board.entries] == [1, 2, 3, 4]
    assert board.reference == alone.name
    assert np.isnan(alone.comparison.p)
    assert region.comparison.difference == pytest.approx(region.scores.mean_dice - alone.scores.mean_dice)
    expected = (region.scores.mean_dice - alone.scores.mean_dice) / (teacher.scores.mean_dice - alone.scores.mean_dice)
    assert region.comparison.gap.share == pytest.approx(expected)
    assert region.comparison.gap.low < expected < region.comparison.gap.high
    assert seen.comparison.gap.share < 0
    assert teacher.comparison.gap is None
    assert teacher.comparison.rank_shares == [1, 0, 0, 0]
    assert seen.warnings == ["teacher saw validation cases (fold 0: 5)"]
    assert region.short_name == "RegionKD · Small"
    assert len(board.shared) == 8
    assert any("8 cases are shared by all 4 models" in line for line in board.notes)
    message = " ".join(footnotes(board))
    assert "KD · Small: teacher saw validation cases (fold 0: 5)." in message
    assert "the student alone that most students are compared with; choose with --reference NAME" in message
    assert "Highest mean Dice: nnUNetTrainer · nnUNetPlans, 1.000" in summary(board)[0]


def test_reference_and_teacher_can_be_chosen(family):
    board = board_of(family, reference="Region", teacher="nnUNetTrainer__")
    assert entry_of(board, "nnUNetTrainerRegionKD").name == board.reference
    assert any("chosen with --reference" in line for line in board.notes)
    board = board_of(family, teacher="KDBaseline")
    region = entry_of(board, "nnUNetTrainerRegionKD")
    assert region.comparison.gap.reason == "the teacher is not better than the student alone"
    with pytest.raises(KDError, match="--reference nothing fits none"):
        board_of(family, reference="nothing")


def test_gap_needs_teacher_and_alone(results):
    gone = {
        "sha256": "0",
        "checkpoint": "checkpoint_final.pth",
        "folder": "f",
        "fold": "0",
        "trainer": "nnUNetTrainer",
        "epoch": 10,
        "params": 1000,
        "seen_validation_cases": None,
    }
    results.add("nnUNetTrainerRegionKD", eroded(2), kd=record("x", gone))
    board = board_of(results)
    assert "its teacher is not among these models" in board.entries[0].comparison.gap.reason
    assert board.entries[0].warnings == ["teacher saw validation cases (fold 0: an unknown number)"]
    teacher = results.add("nnUNetTrainer", shifted(0))
    results.add("nnUNetTrainerKD", eroded(2), kd=record("x", results.teacher_record(teacher)))
    gap = entry_of(board_of(results), "nnUNetTrainerKD").comparison.gap
    assert gap.share is None
    assert "no student alone had the same training (train it: nnUNetv2_train 7 3d_fullres 0 -tr " in gap.reason


def test_the_line_for_a_student_alone_trains_what_can_be_compared(results):
    """With the epochs of the trainer's name and with the options of the student."""
    teacher = results.add("nnUNetTrainer", shifted(0))
    kd = record("nnUNetTrainerKD_6epochs", results.teacher_record(teacher))
    kd["command"] += " -device cpu -p nnUNetPlansSmall --c"
    folder = results.add("nnUNetTrainerKD_6epochs", eroded(2), plans_name="nnUNetPlansSmall", kd=kd)
    (folder / "fold_0" / "kd_options.yaml").touch()
    gap = entry_of(board_of(results), "nnUNetTrainerKD_6epochs").comparison.gap
    line = gap.reason.split("train it: ")[1].rstrip(")")
    assert line == (
        f"nnUNet_kd_config={folder / 'fold_0' / 'kd_options.yaml'} nnUNetv2_train 7 3d_fullres 0 "
        "-tr nnUNetTrainerKDBaseline_6epochs -device cpu -p nnUNetPlansSmall"
    )


def test_missing_folds_are_shown_and_cases_paired(results):
    results.add("nnUNetTrainer", shifted(0), folds=(0, 1))
    results.add("nnUNetTrainerKDBaseline", eroded(2), folds=(1,), kd=record("x"))
    board = board_of(results)
    both, one = board.entries
    assert (fold_names(both), both.scores.cases) == ("0, 1", 16)
    assert (fold_names(one), one.scores.cases, one.warnings) == ("1", 8, ["missing folds: 0"])
    assert board.shared == results.cases(1)


def test_failed_and_empty_are_counted_and_not_averaged(results):
    def change(case, truth):
        return without(1)(case, truth) if case == "box000" else truth

    truth = without(2)("", truth_of(1))
    write(results.truths / "box001.nii.gz", truth)
    folder = results.add("nnUNetTrainer", change)
    results.add("nnUNetTrainerOther", shifted(0))
    file = folder / "fold_0" / "validation" / "summary.json"
    summary = json.loads(file.read_text())
    summary["metric_per_case"] = summary["metric_per_case"][:-1]
    file.write_text(json.dumps(summary))
    board = board_of(results)
    entry = entry_of(board, "nnUNetTrainer")
    assert entry.scores.counts == {"missed": 1, "false_alarms": 0, "both_empty": 1, "failed": 2}
    assert entry.scores.cases == 7
    assert entry.scores.dice == {"a": pytest.approx(6 / 7), "b": 1.0}
    assert entry.scores.nsd == pytest.approx((6 / 7 + 1) / 2)
    assert entry.scores.hd95_mm == 0  # a missed structure has no distance; the count beside it tells
    assert "box007" not in board.shared
    assert "nnUNetTrainer__nnUNetPlans__3d_fullres: box007: failed: not in summary.json" in board.problems


def test_a_dataset_with_one_case(tmp_path, monkeypatch):
    results = Results(tmp_path, per_fold=1)
    results.make_data(folds=1)
    for variable in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{variable}", str(tmp_path / variable))
    results.add("nnUNetTrainer", shifted(0))
    results.add("nnUNetTrainerKDBaseline", shifted(1), kd=record("x"))
    board = board_of(results)
    assert [np.isnan(entry.scores.low) for entry in board.entries] == [True, True]
    assert [np.isnan(entry.comparison.p) for entry in board.entries] == [True, True]
    assert "Fewer than two shared cases: there are no intervals, tests or rank shares." in board.notes
    assert board.entries[0].scores.mean_dice == 1.0


def test_no_shared_case(results):
    results.add("nnUNetTrainer", shifted(0), folds=(0,))
    results.add("nnUNetTrainerOther", shifted(1), folds=(1,))
    board = board_of(results)
    assert board.shared == []
    assert [entry.comparison.rank_shares for entry in board.entries] == [[], []]


def test_a_case_in_two_folds_counts_once_in_comparisons(results):
    results.add("nnUNetTrainer", eroded(2))
    folder = results.add("nnUNetTrainerOther", eroded(3))
    (folder / "fold_1" / "validation").mkdir(parents=True)
    for file in (folder / "fold_0").rglob("*.*"):
        (folder / "fold_1" / file.relative_to(folder / "fold_0")).write_bytes(file.read_bytes())
    board = board_of(results)
    entry = entry_of(board, "nnUNetTrainerOther")
    assert board.shared == results.cases(0)
    assert "8 cases are in several folds; the means count each of them once per fold" in entry.warnings


def test_other_structures_are_not_compared(results):
    results.add("nnUNetTrainer", shifted(0))
    labels = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "c": 1, "b": 2}, "file_ending": ".nii.gz"}
    results.add("nnUNetTrainerOther", shifted(0), dataset_json=labels)
    board = board_of(results)
    assert len(board.entries) == 1
    assert "not compared: it segments" in board.problems[0]


def test_plans_that_are_not_nnunets_are_reported(family):
    folder = family.models / "nnUNetTrainer__nnUNetPlans__3d_fullres"
    (folder / "dataset.json").write_text("{}")
    board = board_of(family)
    assert len(board.entries) == 3
    assert "nnUNetTrainer__nnUNetPlans__3d_fullres: dataset.json is not as nnU-Net writes it:" in board.problems[0]
    for other in family.models.iterdir():
        (other / "dataset.json").write_text("{}")
    with pytest.raises(KDError, match="dataset.json is not as nnU-Net writes it") as refusal:
        board_of(family)
    assert "Train one" not in str(refusal.value)  # they are trained, and damaged


def test_broken_splits_are_reported(family):
    (family.truths.parent / "splits_final.json").write_text("[")
    with pytest.raises(KDError, match=r"splits_final.json is not valid JSON .* nnU-Net will make it again"):
        board_of(family)


def test_half_finished_trainings_are_shown(family):
    fold = family.models / "nnUNetTrainer__nnUNetPlans__3d_fullres" / "fold_0"
    (fold / "checkpoint_final.pth").rename(fold / "checkpoint_latest.pth")
    board = board_of(family)
    entry = board.entries[-1]
    assert (entry.rank, fold_names(entry), entry.scores.cases, entry.warnings) == (
        None,
        "none",
        0,
        ["missing folds: 0"],
    )
    assert any("training not finished: there is checkpoint_latest.pth" in line for line in board.problems)


def test_without_ground_truth_there_is_dice_only(family):
    family.truths.rename(family.truths.parent / "elsewhere")
    board = board_of(family)
    assert not np.isnan(board.entries[0].scores.mean_dice)
    assert np.isnan(board.entries[0].scores.nsd)
    assert any(line.startswith("No surface distances: no ground truth") for line in board.problems)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"images": "there"}, "-i also needs -gt LABELS: predictions are compared with ground truth"),
        ({"truths": "there"}, "-gt also needs"),
        ({"images": "there", "truths": "there"}, "add -o FOLDER"),
        ({"tolerance": 0.0}, "--tolerance must be greater than 0 mm, found 0"),
        ({"tolerance": float("nan")}, "--tolerance must be greater than 0 mm, found nan"),
        ({"timed": -1}, "--time must be 0 or a number of cases, found -1"),
    ],
)
def test_refused_requests(family, options, expected):
    with pytest.raises(KDError) as caught:
        board_of(family, **options)
    assert expected in str(caught.value)
