import shutil

import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from nnunetv2_kd.unlabelled.scans import check_scans, find_scans

END = ".nii.gz"


@pytest.fixture
def write(tmp_path):
    def write(name, value=1.0, shape=(3, 4, 5)):
        image = np.random.RandomState(0).rand(*shape).astype(np.float32) + value
        sitk.WriteImage(sitk.GetImageFromArray(image), str(tmp_path / name))
        return str(tmp_path / name)

    return write


def test_scans_of_one_channel_need_no_channel_number(tmp_path, write):
    write("b_0000.nii.gz")
    write("a.nii.gz")
    write("._a.nii.gz")
    scans, problems = find_scans(tmp_path, END, ["MRI"])
    assert problems == []
    assert [(scan.case, [file.name for file in scan.files]) for scan in scans] == [
        ("a", ["a.nii.gz"]),
        ("b", ["b_0000.nii.gz"]),
    ]


def test_channels_are_in_their_order(tmp_path, write):
    for name in ("a_0001.nii.gz", "a_0000.nii.gz"):
        write(name)
    (scan,), problems = find_scans(tmp_path, END, ["T1", "T2"])
    assert problems == []
    assert [file.name for file in scan.files] == ["a_0000.nii.gz", "a_0001.nii.gz"]


def test_what_cannot_be_found_is_said(tmp_path, write):
    assert find_scans(tmp_path / "none", END, ["MRI"])[1] == [f"-i {tmp_path / 'none'} is not a folder"]
    assert "holds no image that ends in .nii.gz" in find_scans(tmp_path, END, ["MRI"])[1][0]
    write("a.nii.gz")
    write("a_0000.nii.gz")
    assert "two files for one scan, a.nii.gz and a_0000.nii.gz" in find_scans(tmp_path, END, ["MRI"])[1][0]
    assert "a.nii.gz: expected a_0000.nii.gz and so on" in find_scans(tmp_path, END, ["T1", "T2"])[1][0]


def test_all_bad_scans_are_listed(tmp_path, write):
    write("good.nii.gz")
    write("labelled.nii.gz", 2)
    shutil.copyfile(tmp_path / "labelled.nii.gz", tmp_path / "renamed.nii.gz")
    write("two_0000.nii.gz", 3)
    write("two_0001.nii.gz", 4)
    (tmp_path / "broken.nii.gz").write_bytes(b"no image")
    (tmp_path / "cut.nii.gz").write_bytes((tmp_path / "good.nii.gz").read_bytes()[:-40])
    scans, _ = find_scans(tmp_path, END, ["MRI"])
    problems = check_scans(scans, SimpleITKIO(), ["MRI"], {"labelled": [str(tmp_path / "labelled.nii.gz")]})
    message = "\n".join(problems)
    for words in (
        "labelled is already a labelled case",
        "renamed is the image of the labelled case labelled",
        "two: has 2 channels, the teacher expects 1: MRI",
        "broken: broken.nii.gz cannot be read",
        "cut: cut.nii.gz cannot be read: it is cut short",
    ):
        assert words in message
    assert len(problems) == 5
    assert "good" not in message


def test_a_labelled_case_that_cannot_be_read_is_said(tmp_path, write):
    write("good.nii.gz")
    scans, _ = find_scans(tmp_path, END, ["MRI"])
    (problem,) = check_scans(scans, SimpleITKIO(), ["MRI"], {"a": [str(tmp_path / "gone.nii.gz")]})
    assert problem.startswith("labelled case a: cannot be read")


def test_values_that_are_no_numbers_are_said(tmp_path, write):
    write("nan.nrrd", np.nan)  # of NIfTI files nnU-Net's reader makes zeros of them
    scans, _ = find_scans(tmp_path, ".nrrd", ["MRI"])
    assert check_scans(scans, SimpleITKIO(), ["MRI"], {}) == ["nan: holds values that are not finite numbers"]
