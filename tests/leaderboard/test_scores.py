import json

import numpy as np
import pytest
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from nnunetv2_kd.leaderboard.scores import (
    BOTH_EMPTY,
    FAILED,
    FALSE_ALARM,
    MISSED,
    SCORED,
    ScoringJob,
    geometry_difference,
    score,
    structures_of,
    surface_scores,
    validation_jobs,
)
from nnunetv2_kd.nnunet.trained_models import find_models
from tests.scored_models import DATASET, shifted, truth_of, without, write
from tests.small_networks import DATASET_JSON, plans


def box(shape: tuple[int, ...] = (60, 60, 60)) -> np.ndarray:
    array = np.zeros(shape, dtype=bool)
    array[(slice(10, 50),) * len(shape)] = True
    return array


@pytest.mark.parametrize(("axis", "distance"), [(0, 3.0), (1, 1.0), (2, 0.5)])
def test_box_shifted_by_one_voxel(axis, distance):
    """The distance is the spacing along that axis; the surface Dice is 1 for at least this tolerance and below 1 for a
    smaller one."""
    truth = box()
    prediction = np.roll(truth, 1, axis=axis)
    nsd, hd95 = surface_scores(truth, prediction, (3.0, 1.0, 0.5), distance)
    assert (nsd, hd95) == pytest.approx((1.0, distance))
    assert surface_scores(truth, prediction, (3.0, 1.0, 0.5), 0.9 * distance)[0] < 1


def test_surface_dice_by_hand():
    """A box of 120 × 40 × 20 mm, shifted by 3 mm along its length, with a tolerance of 1 mm. Out of reach on each
    surface: the face in front, 2 mm of the four sides behind it, and the opposite face except for 1 mm along its
    edges."""
    out_of_reach = 40 * 20 + 2 * 2 * (40 + 20) + 38 * 18
    surface = 2 * (40 * 20 + 120 * 40 + 120 * 20)
    nsd, _ = surface_scores(box(), np.roll(box(), 1, axis=0), (3.0, 1.0, 0.5), 1.0)
    assert nsd == pytest.approx(1 - out_of_reach / surface, abs=0.01)


def test_outline_of_a_square_by_hand():
    """The same with 120 × 40 mm in two dimensions."""
    square = box((60, 60))
    nsd, hd95 = surface_scores(square, np.roll(square, 1, axis=0), (3.0, 1.0), 1.0)
    assert nsd == pytest.approx(1 - (40 + 2 * 2 + 38) / (2 * (120 + 40)), abs=0.01)
    assert hd95 == pytest.approx(3.0)


def test_dice_is_that_of_summary_json(results):
    folder = results.add("nnUNetTrainer", shifted(2))
    rows, summary = rows_of(results), json.loads((folder / "fold_0/validation/summary.json").read_text())
    for entry in summary["metric_per_case"]:
        case = entry["prediction_file"].rsplit("/", 1)[-1].removesuffix(".nii.gz")
        mine = {row["structure"]: row for row in rows if row["case"] == case}
        assert {name: row["dice"] for name, row in mine.items()} == {
            "a": entry["metrics"]["1"]["Dice"],
            "b": entry["metrics"]["2"]["Dice"],
        }
    assert {row["hd95_mm"] for row in rows} == {2.0}
    assert {row["state"] for row in rows} == {SCORED}
    assert not any(row["note"] for row in rows)


def test_empty_structures(results):
    def change(case, truth):
        return without(1)(case, truth) if case == "box000" else truth

    def truth(i):
        return without(2)("", truth_of(i)) if i in (1, 2) else truth_of(i)

    for i, case in enumerate(results.cases(0)):
        write(results.truths / f"{case}.nii.gz", truth(i))
    folder = results.add("nnUNetTrainer", change)
    write(folder / "fold_0" / "validation" / "box002.nii.gz", truth_of(2))
    results.summarize(folder, 0)
    found = {(row["case"], row["structure"]): row for row in rows_of(results)}
    expected = {("box000", "a"): (MISSED, 0.0, 0.0), ("box002", "b"): (FALSE_ALARM, 0.0, 0.0)}
    for key, (state, dice, nsd) in expected.items():
        assert (found[key]["state"], found[key]["dice"], found[key]["nsd"]) == (state, dice, nsd)
        assert np.isnan(found[key]["hd95_mm"])
    both = found["box001", "b"]
    assert both["state"] == BOTH_EMPTY
    assert np.isnan([both["dice"], both["nsd"], both["hd95_mm"]]).all()
    assert found["box003", "a"]["dice"] == 1.0


def test_missing_case_prediction_and_truth(results):
    folder = results.add("nnUNetTrainer", shifted(1))
    validation = folder / "fold_0" / "validation"
    (validation / "box000.nii.gz").unlink()
    (results.truths / "box001.nii.gz").unlink()
    (validation / "box002.nii.gz").write_bytes(b"no image")
    summary = json.loads((validation / "summary.json").read_text())
    summary["metric_per_case"] = summary["metric_per_case"][:-1]
    (validation / "summary.json").write_text(json.dumps(summary))
    found = {row["case"]: row for row in rows_of(results)}
    assert found["box007"]["state"] == FAILED
    assert found["box007"]["note"] == "not in summary.json"
    for case, words in (
        ("box000", "box000.nii.gz is missing"),
        ("box001", "box001.nii.gz is missing"),
        ("box002", "no surface distances:"),
    ):
        assert found[case]["state"] == SCORED
        assert found[case]["dice"] > 0
        assert np.isnan(found[case]["nsd"])
        assert words in found[case]["note"]


def test_predictions_that_are_not_those_of_summary_json_are_reported(results):
    folder = results.add("nnUNetTrainer", shifted(1))
    write(folder / "fold_0" / "validation" / "box000.nii.gz", np.roll(truth_of(0), 3, axis=1))
    row = next(row for row in rows_of(results) if row["case"] == "box000")
    assert row["note"].startswith("Dice is 0.8333 in summary.json, but 0.5")
    assert row["dice"] == pytest.approx(5 / 6)


def test_broken_summary_and_other_labels_are_reported(results):
    broken = results.add("nnUNetTrainer", shifted(1))
    (broken / "fold_0" / "validation" / "summary.json").write_text("{")
    other = results.add("nnUNetTrainerOther", shifted(1))
    labels = DATASET_JSON | {"labels": {"background": 0, "a": 1, "b": 2, "c": 3}}
    (other / "dataset.json").write_text(json.dumps(labels))
    by_name = {model.trainer: validation_jobs(model, results.truths, [], 1.0)[2] for model in find_models(DATASET)[0]}
    words = "summary.json cannot be read (JSONDecodeError); repeat the training command with --val"
    assert words in by_name["nnUNetTrainer"][0]
    assert "has other labels ({1, 2}) than dataset.json ({1, 2, 3})" in by_name["nnUNetTrainerOther"][0]


def model_with_older_cases(results):
    """Fold 0, with predictions of two cases that were its validation cases in an earlier training."""
    folder = results.add("nnUNetTrainer", shifted(0))
    for case in results.cases(1)[:2]:
        write(folder / "fold_0" / "validation" / f"{case}.nii.gz", np.zeros((8, 14, 14), dtype=np.uint8))
    results.summarize(folder, 0)
    return folder / "fold_0"


def validation_of(results):
    (model,) = find_models(DATASET)[0]
    splits = json.loads((results.truths.parent / "splits_final.json").read_text())
    jobs, missing, problems = validation_jobs(model, results.truths, splits, 1.0)
    return [job.case for job in jobs], missing, problems


def test_cases_of_older_folds_are_not_counted(results):
    fold = model_with_older_cases(results)
    lines = ["This split has 8 training and 8 validation cases."]
    lines += [f"2026-01-01: predicting {case}" for case in results.cases(0)]
    (fold / "training_log_2026_1_1_00_00_00.txt").write_text("\n".join(lines))
    cases, missing, (problem,) = validation_of(results)
    assert sorted(cases) == results.cases(0)
    assert missing == []
    assert "box100, box101 in its validation folder are from a training with other folds" in problem


def test_a_model_that_was_trained_with_other_folds(results):
    """There is no sign that it was validated on other cases than those it has: they count, and no current
    case is missing."""
    model_with_older_cases(results)
    cases, missing, (problem,) = validation_of(results)
    assert len(cases) == 10
    assert missing == []
    assert "fold 0: splits_final.json has changed since the training" in problem


def test_other_shape_fails_with_its_reason(results, tmp_path):
    write(tmp_path / "prediction.nii.gz", np.zeros((4, 14, 14), dtype=np.uint8))
    rows = score(job(results, tmp_path / "prediction.nii.gz"))
    assert [row["state"] for row in rows] == [FAILED, FAILED]
    assert "truth and prediction differ: (8, 14, 14) against (4, 14, 14) voxels" in rows[0]["note"]


def test_ignored_voxels_leave_surfaces_unknown(results, tmp_path):
    truth = truth_of(0)
    truth[0] = 3
    write(tmp_path / "truth.nii.gz", truth)
    write(tmp_path / "prediction.nii.gz", truth_of(0))
    rows = score(job(results, tmp_path / "prediction.nii.gz", truth=tmp_path / "truth.nii.gz", ignore_label=3))
    assert rows[0]["dice"] == 1.0
    assert np.isnan(rows[0]["nsd"])
    assert "ignored voxels" in rows[0]["note"]


def test_a_single_slice_is_two_dimensional(results, tmp_path):
    """Otherwise, its two faces would make the surface Dice too good."""
    for name, array in (("truth", box((60, 60))), ("prediction", np.roll(box((60, 60)), 1, axis=0))):
        write(tmp_path / f"{name}.nii.gz", array[None].astype(np.uint8), (1.0, 3.0, 5.0))
    row = score(job(results, tmp_path / "prediction.nii.gz", truth=tmp_path / "truth.nii.gz"))[0]
    assert row["nsd"] == pytest.approx(0.744, abs=0.01)


def test_structures_of_labels_and_regions():
    assert structures_of(plans(), DATASET_JSON) == {"a": 1, "b": 2}
    regions = {"background": 0, "whole": [1, 2], "core": [2]}
    dataset_json = DATASET_JSON | {"labels": regions, "regions_class_order": [1, 2]}
    assert structures_of(plans(), dataset_json) == {"whole": (1, 2), "core": (2,)}
    ignoring = DATASET_JSON | {"labels": {"background": 0, "a": [1], "b": 2, "ignore": 3}}
    assert structures_of(plans(), ignoring) == {"a": 1, "b": 2}


def test_geometry_difference(tmp_path):
    images = {}
    for name, spacing in (("same", (1.0, 1.0, 3.0)), ("other", (1.0, 1.0, 2.0))):
        write(tmp_path / f"{name}.nii.gz", truth_of(0), spacing)
        images[name] = SimpleITKIO().read_seg(str(tmp_path / f"{name}.nii.gz"))
    (same, properties), (_, others) = images["same"], images["other"]
    assert geometry_difference(same, same, (properties, properties)) == ""
    assert "spacing [3.0, 1.0, 1.0] against [2.0, 1.0, 1.0]" in geometry_difference(same, same, (properties, others))
    assert "8×14×14 voxels against 4×14×14" in geometry_difference(same, same[:, :4], (properties, properties))
    moved = properties | {"sitk_stuff": properties["sitk_stuff"] | {"origin": (5.0, 0.0, 0.0)}}
    assert geometry_difference(same, same, (properties, moved)).startswith("origin")


def job(results, prediction, truth=None, ignore_label=None) -> ScoringJob:
    truth = truth or results.truths / "box000.nii.gz"
    return ScoringJob("m", "0", "box000", truth, prediction, {"a": 1, "b": 2}, ignore_label, SimpleITKIO, 1.0, None)


def rows_of(results) -> list[dict]:
    model = find_models(DATASET)[0][0]
    splits = json.loads((results.truths.parent / "splits_final.json").read_text())
    jobs, missing, problems = validation_jobs(model, results.truths, splits, 1.0)
    assert not problems
    return missing + [row for job in jobs for row in score(job)]
