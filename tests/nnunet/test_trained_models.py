import json

import pytest
import torch

from nnunetv2_kd.errors import KDError
from nnunetv2_kd.nnunet.datasets import trained_dataset
from nnunetv2_kd.nnunet.trained_models import find_models, pick
from tests.scored_models import DATASET, record, shifted


def test_finds_models_and_folds(family):
    family.add("nnUNetTrainer", shifted(0), plans_name="two__parts", folds=(0, 1, "all"))
    models, problems = find_models(DATASET)
    assert not problems
    model = next(model for model in models if model.plans_name == "two__parts")
    assert (model.trainer, model.configuration) == ("nnUNetTrainer", "3d_fullres")
    assert [fold.name for fold in model.validated_folds] == ["0", "1"]
    assert [fold.name for fold in model.predicting_folds] == ["0", "1"]
    assert "fold 'all' is trained on its validation cases: left out" in model.folds[2].problem
    assert len(find_models(DATASET, ["3d_fullres"], ["1"])[0]) == 1


def test_half_finished_trainings_are_reported(family):
    folder = family.models / "nnUNetTrainer__nnUNetPlans__3d_fullres"
    for fold, rename in ((1, "checkpoint_latest.pth"), (2, "checkpoint_final.pth")):
        (folder / f"fold_{fold}").mkdir()
        source = folder / "fold_0" / "checkpoint_final.pth"
        (folder / f"fold_{fold}" / rename).write_bytes(source.read_bytes())
    (folder / "fold_3").mkdir()
    (folder / "fold_3" / "checkpoint_final.pth").write_bytes(source.read_bytes()[:300])
    (folder / "fold_4").mkdir()
    by_name = {fold.name: fold.problem for fold in find_models(DATASET)[0][-1].folds}
    assert by_name["0"] == ""
    assert by_name["1"] == (
        "training not finished: there is checkpoint_latest.pth, and no checkpoint_final.pth (repeat its command "
        "with --c)"
    )
    assert by_name["2"].startswith("trained, but not validated: no validation/summary.json")
    assert "truncated" in by_name["3"]
    assert "4" not in by_name  # an empty folder is no training


def test_an_unfinished_student_is_known_for_one(results):
    results.add("nnUNetTrainer", shifted(0))
    fold = results.add("nnUNetTrainerKD", shifted(0)) / "fold_0"
    (fold / "checkpoint_final.pth").rename(fold / "checkpoint_latest.pth")
    for content, trainer in ((json.dumps(record("nnUNetTrainerKD")), "nnUNetTrainerKD"), ('{"options": 3}', None)):
        (fold / "kd_record.json").write_text(content)
        [unfinished] = [model for model in find_models(DATASET)[0] if model.trainer == "nnUNetTrainerKD"]
        assert (unfinished.record and unfinished.record.trainer) == trainer


def test_a_checkpoint_with_more_than_plain_data_is_compared_but_not_loaded(results):
    folder = results.add("nnUNetTrainer", shifted(0))
    (folder / "fold_0" / "kd_record.json").write_text(json.dumps(record("nnUNetTrainerKD")))
    torch.save({"object": pytest.raises}, folder / "fold_0" / "checkpoint_final.pth")
    fold = find_models(DATASET)[0][0].folds[0]
    assert fold.problem == ""
    assert fold.record.trainer == "nnUNetTrainerKD"


def test_no_model(results, monkeypatch):
    with pytest.raises(
        KDError, match=r"No trained model of Dataset007_Boxes under .*\nIt is not preprocessed yet: nnUNetv2_plan"
    ):
        find_models(DATASET)
    results.add("nnUNetTrainer", shifted(0))
    with pytest.raises(
        KDError, match=r"with configuration 2d with fold 3 under (.|\n)*nnUNetPlans__3d_fullres, fold 0"
    ):
        find_models(DATASET, ["2d"], ["3"])
    (results.models / "nnUNetTrainer__nnUNetPlans__3d_fullres" / "plans.json").write_text("{")
    with pytest.raises(KDError, match=r"nnUNetTrainer__nnUNetPlans__3d_fullres: plans.json is not valid JSON"):
        find_models(DATASET)
    with pytest.raises(KDError, match="There is no dataset 9"):
        trained_dataset("9")
    (results.root / "raw" / "Dataset009_Other").mkdir()
    with pytest.raises(KDError, match=r"No model of Dataset009_Other is trained: .* it holds Dataset007_Boxes"):
        trained_dataset("9")
    monkeypatch.delenv("nnUNet_results")
    with pytest.raises(KDError, match="export nnUNet_results="):
        trained_dataset("7")


def test_unreadable_plans_do_not_hide_the_others(family):
    (family.models / "nnUNetTrainer__nnUNetPlans__3d_fullres" / "plans.json").unlink()
    models, problems = find_models(DATASET)
    assert len(models) == 3
    assert "plans.json cannot be read" in problems[0]


def test_pick(family):
    models, _ = find_models(DATASET)
    assert pick(models, "nnUNetTrainerKD__nnUNetPlansSmall__3d_fullres", "--reference").trainer == "nnUNetTrainerKD"
    assert pick(models, "Region", "--reference").trainer == "nnUNetTrainerRegionKD"
    with pytest.raises(KDError, match=r"--reference Small fits 3 of the models of Dataset007_Boxes(.|\n)*KDBaseline"):
        pick(models, "Small", "--reference")
    with pytest.raises(KDError, match=r"--teacher nobody fits none"):
        pick(models, "nobody", "--teacher")


def test_a_record_that_cannot_be_read_is_reported(results):
    results.add("nnUNetTrainerKD", shifted(0), kd=record("nnUNetTrainerKD") | {"teachers": 3})
    results.add("nnUNetTrainer", shifted(0))
    broken, whole = (model.folds[0] for model in find_models(DATASET)[0])
    assert whole.problem == ""
    assert "checkpoint_final.pth holds a record of its training that cannot be read:\n  - teachers:" in broken.problem
