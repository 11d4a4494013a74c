import json
from unittest import mock

import pytest

from nnunetv2_kd.errors import KDError
from nnunetv2_kd.nnunet.fold_data import check_fold_data, preprocess_line
from nnunetv2_kd.nnunet.splits import make_splits

LINE = "nnUNetv2_preprocess -d 4 -c 3d_fullres"


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "Dataset004_X" / "nnUNetPlans_3d_fullres"
    folder.mkdir(parents=True)
    for case in "abcde":
        for end in (".b2nd", "_seg.b2nd", ".pkl"):
            (folder / f"{case}{end}").touch()
    return folder


def check(data, splits=None, fold=0):
    if splits is not None:
        (data.parent / "splits_final.json").write_text(json.dumps(splits))
    check_fold_data(data, fold, ".nii.gz", LINE)


def test_what_is_well(data):
    check(data)
    check(data, [{"train": ["a", "b"], "val": ["c"]}])
    check(data, fold=7)  # drawn at random by nnU-Net
    check(data, fold="all")


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ({"train": ["a", "gone"], "val": ["b"]}, f"names 1 cases that are not in (.|\n)*gone\nPreprocess them: {LINE}"),
        ({"train": ["a.nii.gz"], "val": ["b.nii.gz"]}, r"Names of cases have no \.nii\.gz"),
        ({"train": ["a", "b"], "val": []}, "has no validation cases"),
        ({"train": [], "val": ["a"]}, "has no training cases"),
        ({"train": ["../a"], "val": ["b"]}, "does not contain a list of folds"),
        ({"train": "ab", "val": ["b"]}, "does not contain a list of folds"),
        ({"train": ["a"]}, "does not contain a list of folds"),
        ([], "does not contain a list of folds"),
    ],
)
def test_a_fold_that_cannot_be_trained(data, split, message):
    with pytest.raises(KDError, match=message):
        check(data, [split])


@pytest.mark.parametrize("content", ["{}", "{", "3", "[3]", "null"])
def test_a_file_that_is_no_list_of_folds(data, content):
    (data.parent / "splits_final.json").write_text(content)
    with pytest.raises(KDError, match=r"splits_final\.json.*Remove it, and nnU-Net will make it again"):
        check(data)


def test_not_preprocessed(data):
    for file in data.iterdir():
        file.unlink()
    for folder in (data, data.with_name("nowhere")):
        with pytest.raises(KDError, match=f"holds no preprocessed cases. Preprocess them: {LINE}"):
            check(folder)


def test_too_few_cases(data):
    for case in "de":
        for file in data.glob(f"{case}*"):
            file.unlink()
    with pytest.raises(
        KDError, match=r"holds 3 preprocessed cases, and nnU-Net's five folds need five\. Write .*splits"
    ):
        check(data)
    check(data, [{"train": ["a", "b"], "val": ["c"]}])  # as it says


def test_split_teachers_says_the_same(data):
    (data.parent / "dataset.json").write_text('{"file_ending": ".nii.gz"}')
    truths = data.parent / "gt_segmentations"
    truths.mkdir()
    with pytest.raises(KDError, match="holds no preprocessed case. Preprocess them: nnUNetv2_plan_and_preprocess -d 4"):
        make_splits(data.parent)
    (truths / "a.nii.gz").touch()
    with pytest.raises(KDError, match="holds 1 preprocessed cases, and nnU-Net's five folds need five"):
        make_splits(data.parent)


def test_folds_that_cannot_be_written(data):
    with (
        mock.patch("nnunetv2_kd.nnunet.fold_data.why_not_writable", return_value="Permission denied"),
        pytest.raises(KDError, match="nnU-Net cannot write it: Permission denied. Make the folder writable: chmod u"),
    ):
        check(data)


def test_the_line_that_preprocesses():
    assert preprocess_line("Dataset004_X", "nnUNetPlans", "3d_fullres") == LINE
    assert preprocess_line("Dataset004_X", "Other", "2d") == "nnUNetv2_preprocess -d 4 -plans_name Other -c 2d"
