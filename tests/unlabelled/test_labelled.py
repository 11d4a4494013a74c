import json

import pytest

from nnunetv2_kd.unlabelled.labelled import NOBODY, Labelled, folds_of, joined_splits, read_labelled


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    for part in ("imagesTr", "labelsTr"):
        (tmp_path / "raw" / "Dataset004_Test" / part).mkdir(parents=True)
    folder = tmp_path / "raw" / "Dataset004_Test"
    (folder / "dataset.json").write_text(json.dumps({"file_ending": ".png"}))
    for case in "abcdef":
        (folder / "imagesTr" / f"{case}_0000.png").touch()
        (folder / "labelsTr" / f"{case}.png").touch()
    preprocessed = tmp_path / "preprocessed"
    (preprocessed / "Dataset004_Test").mkdir(parents=True)
    monkeypatch.setenv("nnUNet_preprocessed", str(preprocessed))
    return folder


def test_the_folds_are_those_of_the_dataset(dataset, tmp_path):
    splits = [{"train": ["a", "b"], "val": ["c"]}, {"train": ["d"], "val": ["c"]}]
    (tmp_path / "preprocessed" / "Dataset004_Test" / "splits_final.json").write_text(json.dumps(splits))
    labelled, problems = read_labelled(dataset)
    assert problems == []
    assert list(labelled.images) == list("abcdef")
    assert joined_splits(labelled, ["z"]) == [
        {"train": ["a", "b", "z"], "val": ["c"]},
        {"train": ["d", "z"], "val": ["c"]},
    ]


def test_without_folds_they_are_those_that_nnunet_would_make(dataset):
    labelled, _ = read_labelled(dataset)
    splits = joined_splits(labelled, ["z", "y"])
    assert len(splits) == 5
    assert sorted(case for split in splits for case in split["val"]) == list("abcdef")
    for split in splits:
        assert {"y", "z"} <= set(split["train"])
        assert set(split["train"]) | set(split["val"]) == set("abcdefyz")


def test_what_is_missing_is_said(dataset, tmp_path):
    (dataset / "imagesTr" / "a_0000.png").unlink()
    (dataset / "labelsTr" / "b.png").unlink()
    splits = [{"train": ["a", "gone"], "val": ["c"]}]
    (tmp_path / "preprocessed" / "Dataset004_Test" / "splits_final.json").write_text(json.dumps(splits))
    message = "\n".join(read_labelled(dataset)[1])
    for words in ("labelled case a: no image", "labelled case b: ", "fold 0, names gone: no labelled case"):
        assert words in message


@pytest.mark.parametrize(("count", "folds"), [(1, 1), (2, 2), (4, 4), (5, 5), (12, 5)])
def test_few_cases_have_few_folds(count, folds):
    cases = [f"case{number:02d}" for number in range(count)]
    splits = folds_of(cases)
    assert len(splits) == folds
    assert sorted(case for split in splits for case in split["val"]) == cases


def test_one_labelled_case_is_validated_on_and_the_scans_are_trained_on():
    one = Labelled({"a": ["a_0000.png"]}, {"a": "a.png"}, folds_of(["a"]))
    assert joined_splits(one, ["y", "z"]) == [{"train": ["y", "z"], "val": ["a"]}]


def test_without_labelled_cases_the_scans_have_folds():
    splits = joined_splits(NOBODY, [f"z{number}" for number in range(10)])
    assert [len(split["val"]) for split in splits] == [2] * 5
