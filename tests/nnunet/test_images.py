"""Whether a file is complete, tested on files that SimpleITK has written."""

import gzip

import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.imageio.tif_reader_writer import Tiff3DIO

from nnunetv2_kd.errors import KDError
from nnunetv2_kd.nnunet.images import (
    cases_in,
    channel_files,
    channel_problems,
    check_complete,
    file_per_channel,
    reader_of,
    reading_problems,
)


@pytest.mark.parametrize("name", ["image.nii.gz", "image.nii"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
@pytest.mark.parametrize("shape", [(9, 11, 12), (13, 14)])
def test_whole_and_cut_short(tmp_path, name, dtype, shape):
    file = tmp_path / name
    voxels = np.random.default_rng(0).integers(0, 200, shape).astype(dtype)
    sitk.WriteImage(sitk.GetImageFromArray(voxels), str(file))
    check_complete(file)
    whole = file.read_bytes()
    for kept in (0, 5, 100, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:kept])
        with pytest.raises(KDError, match=f"{name} cannot be read: it is cut short"):
            check_complete(file)


def test_what_itk_reads_of_a_file_that_was_cut_short(tmp_path):
    """The reason for the check: it does not complain."""
    file = tmp_path / "image.nii.gz"
    voxels = np.random.default_rng(0).normal(size=(30, 40, 40)).astype(np.float32)
    sitk.WriteImage(sitk.GetImageFromArray(voxels), str(file))
    file.write_bytes(file.read_bytes()[:60_000])
    assert (sitk.GetArrayFromImage(sitk.ReadImage(str(file))) == 0).mean() > 0.3


def test_zipped_in_parts(tmp_path):
    """As pigz and bgzip do: the size at the end is that of the last part."""
    plain, file = tmp_path / "image.nii", tmp_path / "image.nii.gz"
    sitk.WriteImage(sitk.GetImageFromArray(np.arange(9 * 10 * 11, dtype=np.int16).reshape(9, 10, 11)), str(plain))
    content = plain.read_bytes()
    parts = [gzip.compress(content[:700]), gzip.compress(content[700:])]
    file.write_bytes(b"".join(parts))
    check_complete(file)
    file.write_bytes(parts[0])
    with pytest.raises(KDError, match="it is cut short, 700 bytes of 2332"):
        check_complete(file)
    file.write_bytes(b"no image")
    with pytest.raises(KDError, match="cut short or damaged"):
        check_complete(file)


def test_other_files(tmp_path):
    (tmp_path / "image.png").write_bytes(b"png")
    check_complete(tmp_path / "image.png")
    check_complete(tmp_path / "none.nii.gz")


def make(folder, *names, channels=1, shape=(4, 5, 6)):
    folder.mkdir(exist_ok=True)
    for name in names:
        for channel in range(channels):
            image = sitk.GetImageFromArray(np.random.default_rng(0).normal(size=shape).astype(np.float32))
            sitk.WriteImage(image, str(folder / f"{name}_{channel:04d}.nii.gz"))
    return {name: channel_files(folder, name, ".nii.gz") for name in names}


def test_names_that_nnunet_would_cut(tmp_path):
    make(tmp_path / "in", "a", "b")
    (tmp_path / "in" / "scan.nii.gz").touch()
    with pytest.raises(KDError, match=r"not named CASE_0000\.nii\.gz and so on(.|\n)*scan\.nii\.gz"):
        cases_in(tmp_path / "in", ".nii.gz")


def test_channels_that_are_missing_or_too_many(tmp_path):
    make(tmp_path, "a", "b", channels=2)
    assert channel_problems(tmp_path, ".nii.gz", 2) == []
    (tmp_path / "b_0001.nii.gz").rename(tmp_path / "b_0002.nii.gz")
    assert channel_problems(tmp_path, ".nii.gz", 2) == ["b: has the channels 0000, 0002, expected 0000, 0001"]
    assert channel_problems(tmp_path, ".nii.gz", None) == ["b: has the channels 0000, 0002, expected 0000, 0001"]
    assert len(channel_problems(tmp_path, ".nii.gz", 1)) == 2


@pytest.mark.parametrize("whole", [True, False])
def test_every_image_is_looked_at_and_named(tmp_path, whole):
    cases = make(tmp_path, "good", "cut", "text")
    file = tmp_path / "cut_0000.nii.gz"
    file.write_bytes(file.read_bytes()[:-20])
    (tmp_path / "text_0000.nii.gz").write_text("hello")
    message = reading_problems(cases, SimpleITKIO, 1, whole)
    assert [line.split(":")[0] for line in message] == ["cut", "text"]
    assert all("cannot be read" in line for line in message)


def test_channels_of_other_sizes_and_numbers(tmp_path):
    cases = make(tmp_path, "a", channels=2)
    make(tmp_path, "a", shape=(4, 5, 7))  # its first channel
    for whole in (True, False):
        (message,) = reading_problems(cases, SimpleITKIO, 2, whole)
        assert message.startswith("a: ")
    assert reading_problems(make(tmp_path, "b"), SimpleITKIO, 2, False) == ["b: has 1 channels, the model expects 2"]


def test_values_that_are_no_numbers(tmp_path):
    image = np.zeros((4, 5, 6), np.float32)
    image[1, 1, 1] = np.nan
    sitk.WriteImage(sitk.GetImageFromArray(image), str(tmp_path / "a_0000.mha"))  # of NIfTI, ITK reads them as 0
    (message,) = reading_problems({"a": [str(tmp_path / "a_0000.mha")]}, SimpleITKIO, 1)
    assert message == "a: a_0000.mha holds values that are not finite numbers"


def test_the_reader_is_the_one_of_the_plans():
    dataset_json = {"file_ending": ".tif", "channel_names": {"0": "a", "1": "b"}}
    assert reader_of({"image_reader_writer": "Tiff3DIO"}, dataset_json) is Tiff3DIO
    assert reader_of({}, dataset_json) is NaturalImage2DIO  # a guess by the ending, of plans that name none
    assert file_per_channel(Tiff3DIO, dataset_json) == 2
    assert file_per_channel(NaturalImage2DIO, dataset_json) is None
