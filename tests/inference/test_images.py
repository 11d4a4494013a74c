"""Whether a file is whole, on files that SimpleITK has written."""

import gzip

import numpy as np
import pytest
import SimpleITK as sitk

from nnunetv2_kd.errors import KDError
from nnunetv2_kd.inference.images import check_whole


@pytest.mark.parametrize("name", ["image.nii.gz", "image.nii"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
@pytest.mark.parametrize("shape", [(9, 11, 12), (13, 14)])
def test_whole_and_cut_short(tmp_path, name, dtype, shape):
    file = tmp_path / name
    voxels = np.random.default_rng(0).integers(0, 200, shape).astype(dtype)
    sitk.WriteImage(sitk.GetImageFromArray(voxels), str(file))
    check_whole(file)
    whole = file.read_bytes()
    for kept in (0, 5, 100, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:kept])
        with pytest.raises(KDError, match=f"{name} cannot be read: it is cut short"):
            check_whole(file)


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
    check_whole(file)
    file.write_bytes(parts[0])
    with pytest.raises(KDError, match="it is cut short, 700 bytes of 2332"):
        check_whole(file)
    file.write_bytes(b"no image")
    with pytest.raises(KDError, match="cut short or damaged"):
        check_whole(file)


def test_other_files(tmp_path):
    (tmp_path / "image.png").write_bytes(b"png")
    check_whole(tmp_path / "image.png")
    check_whole(tmp_path / "none.nii.gz")
