"""The runner reads what nnU-Net's readers read, and writes what its writers write."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from nnunetv2.imageio.reader_writer_registry import recursive_find_reader_writer_by_name
from skimage import io as skimage_io

from nnunetv2_kd.runner.errors import RunnerError
from nnunetv2_kd.runner.images import READERS, read_image

OBLIQUE = (0.0, -0.8, 0.6, 1.0, 0.0, 0.0, 0.0, 0.6, 0.8)


def write_itk(file, shape=(5, 6, 7), dtype=np.int16, direction=OBLIQUE, seed=0):
    image = sitk.GetImageFromArray(np.random.default_rng(seed).integers(-100, 100, shape).astype(dtype))
    if len(shape) == 3:
        image.SetSpacing((0.7, 0.9, 2.5))
        image.SetOrigin((-10.0, 20.0, 5.5))
        image.SetDirection(direction)
    sitk.WriteImage(image, str(file), True)
    return file


def both(reader, files, channels=1):
    nnunet = recursive_find_reader_writer_by_name(reader)()
    expected, properties = nnunet.read_images([str(file) for file in files])
    found = read_image(reader, files, channels)
    assert found.voxels.dtype == expected.dtype == np.float32
    assert found.voxels.strides == expected.strides
    np.testing.assert_array_equal(found.voxels, expected)
    np.testing.assert_array_equal(found.spacing, properties["spacing"])
    return nnunet, properties, found


@pytest.mark.parametrize("reader", ["SimpleITKIO", "SimpleITKIOWithReorient", "NibabelIO", "NibabelIOWithReorient"])
@pytest.mark.parametrize("dtype", [np.int16, np.float64, np.uint8])
@pytest.mark.parametrize("largest", [3, 300])
def test_volumes(reader, dtype, largest, tmp_path):
    files = [write_itk(tmp_path / f"a_000{i}.nii.gz", dtype=dtype, seed=i) for i in range(2)]
    nnunet, properties, found = both(reader, files, 2)
    segmented = np.random.default_rng(1).integers(0, largest + 1, found.voxels.shape[1:]).astype(np.uint16)
    if reader == "SimpleITKIOWithReorient" and largest > 255:
        return  # nnU-Net writes such labels modulo 256
    nnunet.write_seg(segmented, str(tmp_path / "theirs.nii.gz"), properties)
    found.write(segmented, tmp_path / "ours.nii.gz")
    theirs, ours = (sitk.ReadImage(str(tmp_path / f"{name}.nii.gz")) for name in ("theirs", "ours"))
    assert gzip.decompress((tmp_path / "ours.nii.gz").read_bytes()) == gzip.decompress(
        (tmp_path / "theirs.nii.gz").read_bytes()
    )
    assert ours.GetDirection() == theirs.GetDirection()


@pytest.mark.parametrize("ending", [".nrrd", ".mha"])
def test_other_endings(ending, tmp_path):
    both("SimpleITKIO", [write_itk(tmp_path / f"a_0000{ending}")])


def test_a_flat_image_of_itk(tmp_path):
    *_, found = both("SimpleITKIO", [write_itk(tmp_path / "a_0000.mha", (9, 8), np.float32)])
    segmented = np.ones((1, 9, 8), np.uint8)
    found.write(segmented, tmp_path / "ours.mha")
    assert sitk.ReadImage(str(tmp_path / "ours.mha")).GetSize() == (8, 9)


def test_several_channels_in_one_file(tmp_path):
    """nnU-Net reads such a file, and cannot write a segmentation of it."""
    array = np.random.default_rng(0).normal(size=(2, 5, 6, 7)).astype(np.float32)
    image = sitk.JoinSeries([sitk.GetImageFromArray(part) for part in array])
    sitk.WriteImage(image, str(tmp_path / "a_0000.nii.gz"))
    _, _, found = both("SimpleITKIO", [tmp_path / "a_0000.nii.gz"], 2)
    found.write(np.ones((5, 6, 7), np.uint8), tmp_path / "ours.nii.gz")
    assert sitk.ReadImage(str(tmp_path / "ours.nii.gz")).GetSize() == (7, 6, 5)


@pytest.mark.parametrize("ending", [".png", ".bmp", ".tif"])
@pytest.mark.parametrize("colours", [0, 3, 4])
def test_flat_images(ending, colours, tmp_path):
    if ending == ".bmp" and colours == 4:
        pytest.skip("no such files")
    rng = np.random.default_rng(0)
    file = tmp_path / f"a_0000{ending}"
    skimage_io.imsave(file, rng.integers(0, 256, (9, 8, *[colours] * (colours > 0))).astype(np.uint8))
    nnunet, properties, found = both("NaturalImage2DIO", [file], max(1, colours))
    for largest in (2, 300):
        if ending == ".bmp" and largest > 255:
            continue
        segmented = rng.integers(0, largest + 1, (1, 9, 8)).astype(np.uint16)
        segmented[0, 0, 0] = largest
        nnunet.write_seg(segmented, str(tmp_path / f"theirs{ending}"), properties)
        found.write(segmented, tmp_path / f"ours{ending}")
        np.testing.assert_array_equal(
            skimage_io.imread(tmp_path / f"ours{ending}"), skimage_io.imread(tmp_path / f"theirs{ending}")
        )


@pytest.mark.parametrize("message", [True, False])
def test_tiff_volumes(message, tmp_path):
    file = tmp_path / "a_0000.tif"
    tifffile.imwrite(file, np.random.default_rng(0).integers(0, 999, (5, 6, 7)).astype(np.uint16))
    if message:
        (tmp_path / "a.json").write_text('{"spacing": [3, 1, 0.5]}')
    nnunet, properties, found = both("Tiff3DIO", [file])
    segmented = np.random.default_rng(1).integers(0, 3, (5, 6, 7)).astype(np.uint8)
    nnunet.write_seg(segmented, str(tmp_path / "theirs.tif"), properties)
    found.write(segmented, tmp_path / "ours.tif")
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "ours.tif"), tifffile.imread(tmp_path / "theirs.tif"))
    assert json.loads((tmp_path / "ours.json").read_text()) == json.loads((tmp_path / "theirs.json").read_text())


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-40])


@pytest.mark.parametrize(
    ("spoil", "channels", "message"),
    [
        (cut, 1, "cut short or damaged"),
        (lambda file: file.write_bytes(b""), 1, "cannot be read"),
        (lambda file: file.write_bytes(b"no image at all"), 1, "cannot be read"),
        (lambda file: None, 2, "has 1 channels, the model expects 2"),
    ],
)
def test_what_cannot_be_read(spoil, channels, message, tmp_path):
    file = write_itk(tmp_path / "a_0000.nii.gz")
    spoil(file)
    with pytest.raises(RunnerError, match=message) as error:
        read_image("SimpleITKIO", [file], channels)
    assert "a_0000" in str(error.value)


def test_what_is_no_number(tmp_path):
    file = tmp_path / "a_0000.mha"  # in NIfTI files ITK takes it for 0
    sitk.WriteImage(sitk.GetImageFromArray(np.full((4, 5, 6), np.nan, np.float32)), str(file))
    with pytest.raises(RunnerError, match="not finite numbers"):
        read_image("SimpleITKIO", [file], 1)


def test_channels_that_do_not_fit_each_other(tmp_path):
    files = [write_itk(tmp_path / "a_0000.nii.gz"), write_itk(tmp_path / "a_0001.nii.gz", (5, 6, 8))]
    with pytest.raises(RunnerError, match="differ in size"):
        read_image("SimpleITKIO", files, 2)
    image = sitk.ReadImage(str(files[0]))
    image.SetSpacing((1.0, 1.0, 1.0))
    sitk.WriteImage(image, str(files[1]))
    with pytest.raises(RunnerError, match="differ in spacing"):
        read_image("SimpleITKIO", files, 2)


def test_every_reader_of_nnunet_is_there():
    from nnunetv2.imageio.base_reader_writer import BaseReaderWriter

    def names(kind):
        return {kind.__name__} | {name for other in kind.__subclasses__() for name in names(other)}

    assert names(BaseReaderWriter) - {"BaseReaderWriter"} == set(READERS)
