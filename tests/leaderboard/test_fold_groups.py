"""Rows for folds that belong together, and for trainings that differ only in their seed."""

import json
import shutil

import numpy as np
import pytest
import torch

from nnunetv2_kd.leaderboard.board import make_boards
from nnunetv2_kd.leaderboard.fold_groups import share_of
from nnunetv2_kd.leaderboard.footnotes import footnotes
from nnunetv2_kd.leaderboard.request import LeaderboardRequest
from nnunetv2_kd.leaderboard.tables import to_csv, to_json, to_markdown
from tests.scored_models import eroded, record, shifted
from tests.small_networks import plans


def board_of(results, **options):
    return make_boards(LeaderboardRequest(["7"], torch.device("cpu"), **options), lambda line: None)[0]


def rows(board) -> dict[str, list[str]]:
    return {entry.short_name: [fold.name for fold in entry.folds] for entry in board.entries}


def trained_with(folder, fold: int, features: tuple[int, ...]) -> None:
    """A checkpoint that says with which network it was trained."""
    file = folder / f"fold_{fold}" / "checkpoint_final.pth"
    checkpoint = torch.load(file, weights_only=False)
    checkpoint["init_args"]["plans"] = plans("nnUNetPlans", features=features, strides=None)
    torch.save(checkpoint, file)


def test_folds_of_another_network_are_a_row_of_their_own(results):
    """The second fold was trained with another size in the options, and plans.json now has its plans."""
    kd = record("nnUNetTrainerKDBaseline", seed=0)
    folder = results.add("nnUNetTrainerKDBaseline", eroded(2), folds=(0, 1), features=(4, 8), kd=kd)
    trained_with(folder, 0, (8, 16))
    trained_with(folder, 1, (4, 8))
    board = board_of(results)
    assert rows(board) == {"KDBaseline · nnUNetPlans": ["1"], "KDBaseline · nnUNetPlans · fold 0": ["0"]}
    other = next(entry for entry in board.entries if entry.model.part)
    assert "features_per_stage: [4, 8] in plans.json, [8, 16] in its checkpoint" in other.warnings[0]
    assert other.cost.params > next(entry for entry in board.entries if not entry.model.part).cost.params
    assert "train it again under a name" in other.model.unpredictable


def test_folds_of_another_method_are_a_row_of_their_own(results):
    folder = results.add(
        "nnUNetTrainerKDBaseline", eroded(2), folds=(0, 1), kd=record("nnUNetTrainerKDBaseline", seed=0)
    )
    file = folder / "fold_1" / "checkpoint_final.pth"
    checkpoint = torch.load(file, weights_only=False)
    torch.save(checkpoint | {"kd": record("nnUNetTrainerKDBaseline", seed=0, ema=0.99)}, file)
    board = board_of(results)
    assert list(rows(board).values()) == [["0"], ["1"]] or list(rows(board).values()) == [["1"], ["0"]]
    assert any(
        "trained by another method" in line and "ema: none there, 0.99 here" in line for line in footnotes(board)
    )


def test_shares_of_split_teachers_are_rows_of_their_own(results):
    file = results.truths.parent / "splits_final.json"
    splits = json.loads(file.read_text())
    shares = [{"train": [f"share{i}"], "val": splits[0]["val"]} for i in range(2)]
    file.write_text(json.dumps([*splits, *shares]))
    results.add("nnUNetTrainer", shifted(0), folds=(0, 1))
    for fold in (2, 3):  # scored_models names cases by their fold; shares have those of fold 0
        folder = results.models / "nnUNetTrainer__nnUNetPlans__3d_fullres"
        target = folder / f"fold_{fold}"
        target.mkdir()
        for name in ("validation", "checkpoint_final.pth"):
            (target / name).symlink_to(folder / "fold_0" / name)
    board = board_of(results)
    assert rows(board) == {
        "nnUNetTrainer · nnUNetPlans": ["0", "1"],
        "nnUNetTrainer · nnUNetPlans · fold 2": ["2"],
        "nnUNetTrainer · nnUNetPlans · fold 3": ["3"],
    }
    warnings = [warning for entry in board.entries for warning in entry.warnings]
    assert not any("several folds" in warning or "missing folds" in warning for warning in warnings)
    assert share_of("2", [*splits, *shares]) == "0"
    assert share_of("1", [*splits, *shares]) == share_of("all", splits) == share_of("9", splits) == ""


def add_seeds(results, seeds=(0, 1, 2)) -> None:
    for seed in seeds:
        kd = record("nnUNetTrainerKDBaseline", seed=seed)
        results.add("nnUNetTrainerKDBaseline", eroded(2 + seed), plans_name=f"nnUNetPlans_alone_s{seed}", kd=kd)


def test_seeds_are_one_row_with_their_spread(results):
    results.add("nnUNetTrainer", shifted(0), features=(8, 16))
    add_seeds(results)
    single = board_of(results, every_seed=True)
    dice = [e.scores.mean_dice for e in single.entries if e.model.trainer == "nnUNetTrainerKDBaseline"]
    assert len(dice) == 3
    board = board_of(results)
    row = next(entry for entry in board.entries if entry.seeds)
    assert row.short_name == "KDBaseline · alone · 3 seeds"
    assert row.scores.mean_dice == pytest.approx(np.mean(dice))
    assert row.seeds.sd == pytest.approx(np.std(dice, ddof=1))
    assert not row.warnings
    assert f"{np.mean(dice):.3f} ± {np.std(dice, ddof=1):.3f}" in to_markdown([board])
    models_json = json.loads(to_json([board]))["datasets"][0]["models"]
    assert [entry["seed"] for model in models_json if model["seeds"] for entry in model["seeds"]["trainings"]] == [
        0,
        1,
        2,
    ]
    assert {line.split(",")[1] for line in to_csv([board]).splitlines()[1:]} == {e.name for e in single.entries}
    assert any("--every-seed" in note for note in board.notes)


def test_a_seed_that_was_not_validated_is_in_no_mean(results):
    add_seeds(results)
    unvalidated = results.models / "nnUNetTrainerKDBaseline__nnUNetPlans_alone_s2__3d_fullres" / "fold_0"
    shutil.rmtree(unvalidated / "validation")
    board = board_of(results)
    row = next(entry for entry in board.entries if entry.seeds)
    assert row.seeds.seeds == (0, 1)
    assert row.short_name == "KDBaseline · alone · 2 seeds"
    assert any("not validated" in problem for problem in board.problems)
    assert len(board.entries) == 2


def test_models_of_different_folds_are_reported_how_to_be_compared(results):
    results.add("nnUNetTrainer", shifted(0), folds=(0,))
    results.add("nnUNetTrainerKDBaseline", eroded(2), kd=record("nnUNetTrainerKDBaseline"), folds=(0,))
    results.add("nnUNetTrainerKD", eroded(2), kd=record("nnUNetTrainerKD"), folds=(1,))
    notes = board_of(results).notes
    assert any("different folds: compare them on one with -f 0." in note for note in notes)


def test_a_chosen_model_may_be_one_of_the_seeds(results):
    results.add("nnUNetTrainer", shifted(0), features=(8, 16))
    add_seeds(results)
    board = board_of(results, reference="alone_s2")
    assert next(entry for entry in board.entries if entry.seeds).name == board.reference


def test_a_second_training_with_the_same_seed_is_a_row_of_its_own(results):
    """For example a first try, before a series with names."""
    for plans_name, name, seed in (
        ("nnUNetPlans", None, 0),
        ("nnUNetPlans_a_s0", "a_s0", 0),
        ("nnUNetPlans_a_s1", "a_s1", 1),
    ):
        kd = record("nnUNetTrainerKDBaseline", seed=seed, name=name)
        results.add("nnUNetTrainerKDBaseline", eroded(2 + seed), plans_name=plans_name, kd=kd)
    assert sorted(rows(board_of(results))) == ["KDBaseline · a · 2 seeds", "KDBaseline · nnUNetPlans"]


def test_what_differs_in_more_than_the_seed_is_not_pooled(results):
    for seed, ema in ((0, None), (1, 0.9)):
        kd = record("nnUNetTrainerKDBaseline", seed=seed, ema=ema)
        results.add("nnUNetTrainerKDBaseline", eroded(2), plans_name=f"nnUNetPlans_s{seed}", kd=kd)
    assert len(board_of(results).entries) == 2


def test_a_student_and_its_baseline_are_compared_seed_by_row(results):
    teacher = results.add("nnUNetTrainer", shifted(0), features=(8, 16))
    add_seeds(results, (0, 1))
    for seed in (0, 1):
        kd = record("nnUNetTrainerKD", results.teacher_record(teacher), seed=seed)
        results.add("nnUNetTrainerKD", eroded(2), plans_name=f"nnUNetPlans_kd_s{seed}", kd=kd)
    board = board_of(results)
    assert len(board.entries) == 3
    student = next(entry for entry in board.entries if entry.kind == "student distilled")
    assert student.comparison.gap.share is not None


def test_folders_without_a_checkpoint_are_no_folds(results):
    """A failed start leaves such a folder in older versions and in stock nnU-Net."""
    results.add("nnUNetTrainer", shifted(0))
    (results.models / "nnUNetTrainer__nnUNetPlans__3d_fullres" / "fold_1").mkdir()
    empty = results.models / "nnUNetTrainerKD__nnUNetPlans__3d_fullres" / "fold_0"
    empty.mkdir(parents=True)
    (empty / "training_log.txt").write_text("no teacher")
    board = board_of(results)
    assert [entry.name for entry in board.entries] == ["nnUNetTrainer__nnUNetPlans__3d_fullres"]
    assert not board.problems
