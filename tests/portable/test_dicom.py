"""Read a DICOM series, and write a segmentation object at the right place in the patient."""

import json

import numpy as np
import pytest
import SimpleITK as sitk

from nnunetv2_kd.cli.main import main
from nnunetv2_kd.inference.runtimes import is_installed
from nnunetv2_kd.runner import command
from nnunetv2_kd.runner.dicom import read_series
from nnunetv2_kd.runner.errors import RunnerError
from tests.inference.models import KINDS, make_model

highdicom = pytest.importorskip("highdicom")
pydicom = pytest.importorskip("pydicom")
pytestmark = pytest.mark.skipif(not is_installed("onnx"), reason="onnxruntime is not installed")
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
SAGITTAL = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)
CODES = {"a": ["10200004", "SCT", "Liver"]}


def write_series(folder, voxels, orientation=AXIAL, spacing=(1.5, 1.1, 0.9), uid=None, skew=0.0):
    """One file per slice, in no order, with what a scanner writes."""
    folder.mkdir(parents=True, exist_ok=True)
    row, column = np.array(orientation[:3]), np.array(orientation[3:])
    normal = np.cross(row, column)
    uid, study, frame = uid or pydicom.uid.generate_uid(), pydicom.uid.generate_uid(), pydicom.uid.generate_uid()
    for number in np.random.default_rng(0).permutation(len(voxels)):
        made = pydicom.Dataset()
        made.file_meta = pydicom.dataset.FileMetaDataset()
        made.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID = pydicom.uid.CTImageStorage
        made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID = pydicom.uid.generate_uid()
        made.SeriesInstanceUID, made.StudyInstanceUID, made.FrameOfReferenceUID = uid, study, frame
        made.PatientID, made.PatientName, made.PatientSex, made.PatientBirthDate = "1", "Phantom", "", ""
        made.StudyID = made.AccessionNumber = made.StudyDate = made.StudyTime = made.ReferringPhysicianName = ""
        made.Modality, made.SeriesNumber, made.InstanceNumber = "CT", 3, int(number) + 1
        made.Rows, made.Columns = voxels.shape[1:]
        made.PixelSpacing, made.SliceThickness = [spacing[1], spacing[2]], spacing[0]
        made.ImageOrientationPatient = list(orientation)
        place = np.array([-20.0, 5.0, 30.0]) + number * (spacing[0] * normal + skew * column)
        made.ImagePositionPatient = [float(value) for value in place]
        made.SamplesPerPixel, made.PhotometricInterpretation = 1, "MONOCHROME2"
        made.BitsAllocated = made.BitsStored = 16
        made.HighBit, made.PixelRepresentation = 15, 1
        made.RescaleSlope, made.RescaleIntercept = 2, -100
        made.PixelData = voxels[number].astype(np.int16).tobytes()
        made.save_as(folder / f"{uid[-5:]}_{7919 * number % 1009}.dcm", enforce_file_format=True)
    return folder


@pytest.fixture
def voxels():
    image = sitk.GetImageFromArray(np.random.default_rng(0).normal(size=(21, 18, 19)).astype(np.float32))
    return np.round(50 * sitk.GetArrayFromImage(sitk.DiscreteGaussian(image, 1.0))) + 50


def as_itk(folder):
    """As ITK reads the series, with its own sorting."""
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    return reader.Execute()


@pytest.mark.parametrize(
    ("orientation", "kind"),
    [
        pytest.param(AXIAL, "plain", marks=pytest.mark.slow),
        (SAGITTAL, "plain"),
        pytest.param(AXIAL, "regions", marks=pytest.mark.slow),
    ],
)
def test_round_trip(here, voxels, orientation, kind):
    """The segments equal the segmentation of the same image in a NIfTI file with the orientation of
    the training images."""
    make_model(here / "results", **KINDS[kind])
    (here / "codes.json").write_text(json.dumps(CODES))
    assert main(["export", "-d", "7", "-o", "out", "--format", "portable", "--codes", "codes.json"]) == 0
    write_series(here / "series" / "one", voxels, orientation)
    arguments = ["-i", "series", "-o", "found", "--dicom", "--orientation", "RAS"]
    assert command.main(here / "out", arguments) == command.DONE
    (here / "images").mkdir()
    turned = sitk.DICOMOrient(as_itk(here / "series" / "one"), "RAS")
    sitk.WriteImage(sitk.Cast(turned, sitk.sitkFloat32), str(here / "images" / "one_0000.nii.gz"))
    assert command.main(here / "out", ["-i", "images", "-o", "nifti"]) == command.DONE
    expected = sitk.ReadImage(str(here / "nifti" / "one.nii.gz"))
    read = highdicom.seg.segread(here / "found" / "one.dcm")
    labels = {"a": [1], "b": [2]} if kind == "plain" else {"whole": [1, 2], "a": [1]}
    assert [segment.SegmentLabel for segment in read.SegmentSequence] == list(labels)
    message = {segment.SegmentLabel: segment.segmented_property_type.value for segment in read.SegmentSequence}
    assert message["a"] == "10200004"
    volume = read.get_volume(combine_segments=False, allow_missing_positions=True)
    indices = np.stack(np.meshgrid(*map(np.arange, volume.spatial_shape), indexing="ij"), axis=-1).reshape(-1, 3)
    places = volume.map_indices_to_reference(indices)
    at = [expected.TransformPhysicalPointToIndex(list(map(float, place))) for place in places]
    array = sitk.GetArrayFromImage(expected)
    assert array.size == len(at)
    there = array[tuple(np.array(at).T[::-1])]
    for number, values in enumerate(labels.values()):
        np.testing.assert_array_equal(volume.array[..., number].reshape(-1).astype(bool), np.isin(there, values))


@pytest.mark.parametrize("orientation", [AXIAL, SAGITTAL])
def test_geometry_is_that_of_itk(tmp_path, voxels, orientation):
    found = read_series(write_series(tmp_path / "a", voxels, orientation))
    image = as_itk(tmp_path / "a")
    np.testing.assert_allclose(found.spacing[::-1], image.GetSpacing(), atol=1e-6)
    np.testing.assert_allclose(found.direction.ravel(), image.GetDirection(), atol=1e-6)
    np.testing.assert_allclose(found.slices[0].ImagePositionPatient, image.GetOrigin(), atol=1e-6)


def several(folder, voxels):
    write_series(folder, voxels)
    write_series(folder, voxels)


def missing(folder, voxels):
    write_series(folder, voxels)
    place = {file: pydicom.dcmread(file).ImagePositionPatient[2] for file in folder.iterdir()}
    sorted(place, key=lambda file: place[file])[5].unlink()


def double(folder, voxels):
    write_series(folder, voxels)
    first = min(folder.iterdir())
    again = pydicom.dcmread(first)
    again.SOPInstanceUID = pydicom.uid.generate_uid()
    again.save_as(folder / "again.dcm")


def two_directions(folder, voxels):
    write_series(folder, voxels)
    first = min(folder.iterdir())
    other = pydicom.dcmread(first)
    other.ImageOrientationPatient = [0.0, 1.0, 0.0, 1.0, 0.0, 0.0]
    other.save_as(first)


def nowhere(folder, voxels):
    write_series(folder, voxels)
    for file in folder.iterdir():
        other = pydicom.dcmread(file)
        del other.ImagePositionPatient
        other.save_as(file)


def colours(folder, voxels):
    write_series(folder, voxels)
    for file in folder.iterdir():
        other = pydicom.dcmread(file)
        other.SamplesPerPixel = 3
        other.save_as(file)


def no_image(folder, voxels):
    folder.mkdir()
    (folder / "notes.txt").write_text("nothing")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (several, "holds 2 series"),
        (missing, "missing or not evenly spaced"),
        (double, "has two slices at"),
        (two_directions, "differ in ImageOrientationPatient"),
        (nowhere, "ImagePositionPatient missing"),
        (lambda folder, voxels: write_series(folder, voxels, skew=0.4), "the gantry was tilted"),
        (colours, "is a colour image"),
        (no_image, "contains no DICOM image"),
    ],
)
def test_series_that_are_refused(tmp_path, voxels, make, message):
    make(tmp_path / "a", voxels)
    with pytest.raises(RunnerError, match=message):
        read_series(tmp_path / "a")


def test_left_and_right_are_not_guessed(copied, tmp_path, voxels, capsys):
    write_series(tmp_path / "series", voxels)
    arguments = ["-i", str(tmp_path / "series"), "-o", str(tmp_path / "found"), "--dicom"]
    assert command.main(copied, arguments) == command.SOME_FAILED
    assert "State it: --orientation RAS" in capsys.readouterr().err
    assert command.main(copied, [*arguments, "--orientation", "RAA"]) == command.NOT_BEGUN
    assert "--orientation must be like RAS" in capsys.readouterr().err
    assert list((tmp_path / "found").iterdir()) == []
