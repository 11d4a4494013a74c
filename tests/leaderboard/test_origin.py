import json

from nnunetv2_kd.leaderboard.evaluate import rows_of
from nnunetv2_kd.leaderboard.origin import (
    find_student_alone,
    iterations,
    kind,
    origins_of,
    provenance,
    seen_cases,
    teachers_of,
)
from nnunetv2_kd.leaderboard.request import RunsIn
from nnunetv2_kd.leaderboard.short_names import explain_short_names, short_names
from nnunetv2_kd.nnunet.trained_models import find_models
from tests.scored_models import DATASET, record, shifted


def test_origins(family):
    models = {model.trainer: model for model in find_models(DATASET)[0]}
    every = list(models.values())
    teachers = teachers_of(every)
    teacher = "nnUNetTrainer__nnUNetPlans__3d_fullres"
    # told by the SHA-256, though the recorded folder does not exist
    assert teachers == {models[name].name: teacher for name in ("nnUNetTrainerKD", "nnUNetTrainerRegionKD")}
    kinds = {name: kind(model, list(teachers.values())) for name, model in models.items()}
    assert kinds == {
        "nnUNetTrainer": "teacher",
        "nnUNetTrainerKDBaseline": "student alone",
        "nnUNetTrainerKD": "student distilled",
        "nnUNetTrainerRegionKD": "student distilled",
    }
    assert kind(models["nnUNetTrainer"], []) == "nnU-Net"
    assert find_student_alone(models["nnUNetTrainerKD"], every) is models["nnUNetTrainerKDBaseline"]
    assert seen_cases(models["nnUNetTrainerKD"]) == "fold 0: 5"
    assert seen_cases(models["nnUNetTrainerRegionKD"]) == ""
    assert iterations(models["nnUNetTrainerKD"]) == 100
    assert iterations(models["nnUNetTrainer"]) is None
    facts = dict(provenance(models["nnUNetTrainerRegionKD"]))
    assert facts["command"] == "nnUNetv2_train 7 3d_fullres 0 -tr nnUNetTrainerRegionKD"
    assert "SHA-256" in facts["teacher of fold 0"]
    assert facts["options"] == '{"iterations_per_epoch": 10}'
    assert facts["fold 0"] == "10 epochs, nnunetv2_kd 0.1.0"


def test_rows_of_one_runtime_belong_together(family):
    rows, runs_in = rows_of(find_models(DATASET)[0], [RunsIn("torch"), RunsIn("openvino", "bf16")])
    teacher, alone = (f"nnUNetTrainer{name}__3d_fullres" for name in ("__nnUNetPlans", "KDBaseline__nnUNetPlansSmall"))
    for teachers in (None, teacher):
        origins = origins_of(rows, teachers)
        for where in ("torch f32", "openvino bf16"):
            student = origins[f"nnUNetTrainerRegionKD__nnUNetPlansSmall__3d_fullres in {where}"]
            assert student.teacher == f"{teacher} in {where}"
            assert student.alone_name == f"{alone} in {where}"
    assert runs_in[f"{alone} in openvino bf16"] == RunsIn("openvino", "bf16")
    assert "KDBaseline · Small · openvino bf16" in short_names(rows).values()
    assert "trainer · plans · runtime" in explain_short_names(rows)[0]
    assert [row.name for row in rows_of(find_models(DATASET)[0], [RunsIn("onnx")])[0]] == [
        model.name for model in find_models(DATASET)[0]
    ]


def test_models_that_labelled_or_that_a_student_began_with_may_have_seen_its_validation_cases(results):
    alone = record("nnUNetTrainerKDBaseline")
    model = {"folder": "M", "fold": "1", "checkpoint": "c.pth", "sha256": "0", "trainer": "T", "epoch": 1, "params": 9}
    labels = {"cases": ["a", "b"], "validation_cases": 0, "teachers": [model | {"seen_validation_cases": 4}]}
    results.add("nnUNetTrainerKDBaseline", shifted(0), kd=alone | {"teacher_labels": labels})
    results.add(
        "nnUNetTrainerKDBaseline_5epochs", shifted(0), kd=alone | {"start": model | {"seen_validation_cases": 3}}
    )
    # what these validation cases are compared with is the teacher's word: nothing is left to have seen
    of_teacher = labels | {"validation_cases": 5}
    results.add("nnUNetTrainerKDBaseline_6epochs", shifted(0), kd=alone | {"teacher_labels": of_teacher})
    models = {model.trainer: model for model in find_models(DATASET)[0]}
    assert [seen_cases(models[f"nnUNetTrainerKDBaseline{suffix}"]) for suffix in ("", "_5epochs", "_6epochs")] == [
        "fold 0: 4",
        "fold 0: 3",
        "",
    ]
    assert all(kind(model, []) == "student alone" for model in models.values())
    facts = dict(provenance(models["nnUNetTrainerKDBaseline"]))
    assert facts["labels of fold 0"].startswith("2 training and 0 validation cases labelled by M, fold 1")
    assert "M, fold 1" in dict(provenance(models["nnUNetTrainerKDBaseline_5epochs"]))["fold 0 started as a part of"]


def test_iterations_as_recorded_else_as_asked_for_else_as_nnunet_noted(results):
    asked = record("nnUNetTrainerKDBaseline")
    training = {"epochs": 10, "iterations_per_epoch": 30, "batch_size": 2, "cases": 16}
    environment = {"python": "3.11.4", "torch": "2.8.0", "nnunetv2": "2.8.1", "device": "NVIDIA H100"}
    results.add("nnUNetTrainerKDBaseline", shifted(0), kd=asked | {"training": training, "environment": environment})
    results.add("nnUNetTrainerKDBaseline_5epochs", shifted(0), kd=asked)
    results.add("nnUNetTrainerKDBaseline_6epochs", shifted(0), kd=asked | {"options": {}})
    results.add("nnUNetTrainer", shifted(0))
    for trainer in ("nnUNetTrainerKDBaseline_6epochs", "nnUNetTrainer"):
        notes = {"num_iterations_per_epoch": "250", "torch_version": "2.7.1"}
        folder = results.models / f"{trainer}__nnUNetPlans__3d_fullres" / "fold_0"
        (folder / "debug.json").write_text(json.dumps(notes))
    models = {model.trainer: model for model in find_models(DATASET)[0]}
    assert [iterations(models[f"nnUNetTrainerKDBaseline{suffix}"]) for suffix in ("", "_5epochs", "_6epochs")] == [
        300,
        100,
        2500,
    ]
    assert iterations(models["nnUNetTrainer"]) == 2500
    assert dict(provenance(models["nnUNetTrainerKDBaseline"]))["fold 0"] == (
        "10 epochs of 30 iterations, 2 patches each, on 16 cases, nnunetv2_kd 0.1.0, nnU-Net 2.8.1, torch 2.8.0, "
        "Python 3.11.4, on NVIDIA H100"
    )
    assert dict(provenance(models["nnUNetTrainer"]))["fold 0"] == "10 epochs, torch 2.7.1"


def test_alone_has_the_same_plans_network_and_epochs(family):
    teacher = family.teacher_record(family.models / "nnUNetTrainer__nnUNetPlans__3d_fullres")
    kd = record("x", teacher | {"sha256": ""})
    family.add("nnUNetTrainerRegionKD_5epochs", shifted(0), plans_name="nnUNetPlansSmall", kd=kd)
    family.add("nnUNetTrainerRegionKD", shifted(0), plans_name="nnUNetPlansWide", features=(8, 8))
    family.add("nnUNetTrainerKDBaseline", shifted(0), plans_name="nnUNetPlansWide", features=(4, 4))
    models = find_models(DATASET)[0]
    for model in models:
        if model.trainer.endswith("5epochs") or (model.plans_name, model.trainer[-2:]) == ("nnUNetPlansWide", "KD"):
            assert find_student_alone(model, models) is None
