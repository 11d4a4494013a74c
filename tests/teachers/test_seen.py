"""Which validation cases a teacher was trained on, found from what its training left."""

import json

import pytest

from nnunetv2_kd.nnunet.validation import read_validation, set_stale_aside
from nnunetv2_kd.record import TeacherRecord
from nnunetv2_kd.teachers.seen import TrainingCases, training_cases
from nnunetv2_kd.trainers.messages import about_teachers

MINE, OTHER = "Dataset999_Mine", "Dataset998_Other"
SPLITS = [{"train": ["b", "c"], "val": ["a"]}, {"train": ["a", "c"], "val": ["b"]}, {"train": ["c"], "val": ["b"]}]


@pytest.fixture
def preprocessed(tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "preprocessed"))
    write_splits(tmp_path / "preprocessed", SPLITS)
    return tmp_path / "preprocessed"


def write_splits(preprocessed, splits, dataset=MINE):
    (preprocessed / dataset).mkdir(parents=True, exist_ok=True)
    (preprocessed / dataset / "splits_final.json").write_text(json.dumps(splits))


def left(folder, validated, counts=None, log="training_log_2026_1_1_00_00_01.txt", predicted=None):
    """The files that a training leaves."""
    (folder / "validation").mkdir(parents=True, exist_ok=True)
    for case in validated:
        (folder / "validation" / f"{case}.nii.gz").touch()
    if counts is not None:
        lines = ["This split has {} training and {} validation cases.".format(*counts)]
        lines += [f"2026-01-01: predicting {case}" for case in (validated if predicted is None else predicted)]
        (folder / log).write_text("\n".join(lines) + "\n")
    return folder


def seen(folder, fold, validation, dataset=MINE, students=MINE, kd=None):
    return training_cases(folder, dataset, fold, ".nii.gz", kd).seen(students, validation)


def test_the_folds_as_they_are(preprocessed, tmp_path):
    folder = left(tmp_path / "fold", ["a"], (2, 1))
    assert seen(folder, 0, ["a"]) == 0
    assert seen(folder, "0", ["b"]) == 1
    assert seen(left(tmp_path / "share", ["b"], (1, 1)), 2, ["a"]) == 0  # of a share of the cases


def test_counts_alone_tell_too(preprocessed, tmp_path):
    assert seen(left(tmp_path / "fold", [], (2, 1)), 0, ["a"]) == 0
    assert seen(left(tmp_path / "other", [], (7, 1)), 0, ["a"]) is None


def test_folds_that_were_changed_since(preprocessed, tmp_path):
    folder = left(tmp_path / "fold", ["a"], (2, 1))
    write_splits(preprocessed, SPLITS[1:] + SPLITS[:1])
    assert seen(folder, 0, ["b"]) == 1
    assert seen(folder, 0, ["a"]) == 0


def test_a_fold_that_is_not_in_the_file(preprocessed, tmp_path):
    assert seen(left(tmp_path / "fold", ["a"]), 7, ["b"]) == 1
    assert seen(left(tmp_path / "nothing", []), 7, ["b"]) is None


def test_fold_all(preprocessed, tmp_path):
    assert seen(tmp_path / "fold", "all", ["a"]) == 1
    assert seen(tmp_path / "fold", "all", ["a", "new"], OTHER, MINE) is None
    (preprocessed / MINE / "splits_final.json").unlink()
    assert seen(tmp_path / "fold", "all", ["a", "b"]) == 2


def test_a_teacher_that_left_nothing(preprocessed, tmp_path):
    assert seen(tmp_path / "fold", 0, ["a"]) is None


def test_a_teacher_of_another_dataset(preprocessed, tmp_path):
    folder = left(tmp_path / "fold", ["a"], (2, 1))
    assert seen(folder, 0, ["b", "c"], OTHER) is None  # that dataset is not here, and no name is shared
    assert seen(folder, 0, ["a", "c"], OTHER) == 1  # a name is: of one collection
    write_splits(preprocessed, SPLITS, OTHER)
    assert seen(folder, 0, ["b", "c"], OTHER) == 2
    assert seen(folder, 0, ["x"], OTHER) == 0


def test_what_a_students_teachers_have_seen(preprocessed, tmp_path):
    folder = left(tmp_path / "fold", ["a"], (2, 1))
    teachers = {"teachers": [{"seen_validation_cases": 0}, {"seen_validation_cases": 1}]}
    assert seen(folder, 0, ["a"], kd=teachers) == 1
    assert seen(folder, 0, ["a"], kd={"teachers": [{"seen_validation_cases": None}]}) is None
    cases = training_cases(folder, MINE, 0, ".nii.gz", teachers)
    assert TrainingCases.from_dict(json.loads(json.dumps(cases.as_dict()))) == cases


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (2, "WARNING: the teacher was trained on 2 of this student's validation cases"),
        (None, "WARNING: it is not known whether the teacher was trained on this student's validation cases"),
    ],
)
def test_the_warning(count, expected):
    class Teacher:
        def describe(self):
            return []

        def records(self):
            return [TeacherRecord("folder", "0", "c.pth", "", "nnUNetTrainer", 1, 9, count)]

    (line,) = about_teachers(Teacher(), 1, 0)
    assert line.startswith(expected)
    (line,) = about_teachers(Teacher(), 1, 1)
    assert line.startswith("WARNING: the teacher is of fold 0, the student of fold 1: ")


# ---- validation folders


def test_cases_of_older_folds_are_stale(tmp_path):
    left(tmp_path, ["a", "b"], (2, 2))
    left(tmp_path, ["c"], (2, 1), "training_log_2026_10_1_00_00_01.txt")
    found = read_validation(tmp_path, ".nii.gz")
    assert (found.cases, found.stale, found.counts) == ({"c"}, {"a", "b"}, (2, 1))


def test_of_several_gpus_the_log_names_some(tmp_path):
    left(tmp_path, ["a"], (3, 1))
    left(tmp_path, ["b", "c"], (3, 2), "training_log_2026_10_1_00_00_01.txt", predicted=["b"])
    assert read_validation(tmp_path, ".nii.gz", ["b", "c"]).stale == {"a"}
    assert read_validation(tmp_path, ".nii.gz").stale == set()


def test_a_zip_has_the_summary_alone(tmp_path):
    (tmp_path / "validation").mkdir()
    content = {"metric_per_case": [{"prediction_file": "/elsewhere/validation/a.nii.gz"}]}
    (tmp_path / "validation" / "summary.json").write_text(json.dumps(content))
    assert read_validation(tmp_path, ".nii.gz").cases == {"a"}


def test_stale_cases_are_set_aside(tmp_path):
    left(tmp_path, ["a", "b"])
    for name in ("a.npz", "b.npz", "summary.json"):
        (tmp_path / "validation" / name).touch()
    (line,) = set_stale_aside(tmp_path, ["b"], ".nii.gz")
    assert "1 cases in validation are no longer validation cases of this fold" in line
    assert sorted(f.name for f in (tmp_path / "validation").iterdir()) == ["b.nii.gz", "b.npz", "summary.json"]
    assert sorted(f.name for f in (tmp_path / "validation_of_older_folds").iterdir()) == ["a.nii.gz", "a.npz"]
    assert set_stale_aside(tmp_path, ["b"], ".nii.gz") == []
    assert set_stale_aside(tmp_path / "nothing", ["b"], ".nii.gz") == []
