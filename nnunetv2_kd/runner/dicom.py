"""Read a DICOM series, and write a DICOM segmentation object."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .cases import Case, write_atomically
from .errors import RunnerError, first_line
from .model import Model
from .predictor import Predictor, Profile, Progress

Array = NDArray[Any]
SAME = 1e-3  # tolerance, in mm and for direction cosines
UNEVEN = 0.02  # share of the slice distance by which two distances may differ
ANATOMY, TISSUE = ("123037004", "SCT", "Anatomical Structure"), ("85756007", "SCT", "Tissue")
REORIENTED = ("SimpleITKIOWithReorient", "NibabelIOWithReorient")  # readers that reorient every image to RAS


@dataclass(frozen=True)
class Series:
    """One series, sorted along the normal of its slices.

    Attributes:
        slices: pydicom's datasets.
        spacing: mm, along slices, rows, columns.
        direction: of columns, rows and slices, in patient coordinates, as the columns of a matrix.
    """

    slices: list[Any]
    spacing: list[float]
    direction: Array


def series_in(where: Path, model: Model) -> list[Case]:
    """The series of a folder, or of every folder in it.

    Raises:
        RunnerError: if there is none, or the model needs more than one image.
    """
    if len(model.channels) != 1 or model.needs_previous:
        raise RunnerError(
            "--dicom segments a single series, but this model needs several images. Convert them, and leave out "
            "--dicom."
        )
    if not where.is_dir():
        raise RunnerError(f"-i {where} is not a folder with a DICOM series.")
    folders = [folder for folder in sorted(where.iterdir()) if folder.is_dir()]
    has_files = any(file.is_file() for file in where.iterdir())
    if has_files and folders:
        raise RunnerError(
            f"-i {where} holds both files and folders. Name the folder of one series, or a folder of such folders."
        )
    if not has_files and not folders:
        raise RunnerError(f"-i {where} is empty.")
    return [Case(folder.resolve().name, [folder]) for folder in ([where] if has_files else folders)]


def read_series(folder: Path) -> Series:
    """Read the series of a folder, and check that its slices form a regular grid.

    Raises:
        RunnerError: names the problem: no series or several, several frames in a file, missing or duplicate slices,
            slices of different sizes or directions, a tilted gantry.
    """
    import pydicom

    slices = []
    for file in sorted(path for path in folder.iterdir() if path.is_file()):
        try:
            read = pydicom.dcmread(file)
        except pydicom.errors.InvalidDicomError:
            continue  # notes, and whatever else is in such folders
        if "PixelData" in read:
            slices.append(read)
    if not slices:
        raise RunnerError(f"{folder.name} contains no DICOM image.")
    uids = {str(read.SeriesInstanceUID): str(read.get("SeriesDescription", "")) for read in slices}
    if len(uids) > 1:
        listed = ", ".join(f"{description or 'without description'} ({uid})" for uid, description in uids.items())
        raise RunnerError(f"{folder.name} holds {len(uids)} series: {listed}. Give each its own folder.")
    if any(int(read.get("NumberOfFrames", 1)) > 1 for read in slices):
        raise RunnerError(
            f"{folder.name} has several frames in a file, which cannot be read here. Convert it to NIfTI."
        )
    if any(int(read.get("SamplesPerPixel", 1)) != 1 for read in slices):
        raise RunnerError(f"{folder.name} is a colour image; --dicom segments grey images.")
    needed = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
    lacking = [name for name in needed if any(not read.get(name) for read in slices)]
    if lacking:
        raise RunnerError(f"{folder.name} does not say where its slices are: {', '.join(lacking)} missing.")
    for name in ("Rows", "Columns", "PixelSpacing", "ImageOrientationPatient"):
        values = [np.atleast_1d(np.array(read.get(name), dtype=float)) for read in slices]
        if not all(np.allclose(value, values[0], rtol=0, atol=SAME) for value in values):
            raise RunnerError(f"The slices of {folder.name} differ in {name}.")
    return _sort_slices(slices, folder.name)


def _sort_slices(slices: list[Any], name: str) -> Series:
    turned = np.array(slices[0].ImageOrientationPatient, dtype=float)
    along_row, along_column = turned[:3], turned[3:]
    normal = np.cross(along_row, along_column)
    positions = np.array([read.ImagePositionPatient for read in slices], dtype=float)
    order = np.argsort(positions @ normal, kind="stable")
    slices, positions = [slices[i] for i in order], positions[order]
    steps = np.diff(positions @ normal)
    if len(steps) and steps.min() < SAME:
        place = positions[int(steps.argmin())] @ normal
        raise RunnerError(
            f"{name} has two slices at {place:.2f} mm along its normal. Keep one slice for each position."
        )
    if len(steps):
        distance = float(np.median(steps))
        gaps = np.flatnonzero(np.abs(steps - distance) > UNEVEN * distance)
        if len(gaps):
            between = f"{positions[gaps[0]] @ normal:.2f} and {positions[gaps[0] + 1] @ normal:.2f} mm"
            raise RunnerError(
                f"Slices of {name} are missing or not evenly spaced: between {between} along its normal there are "
                f"{steps[gaps[0]]:.2f} mm, elsewhere {distance:.2f}."
            )
    else:
        distance = float(slices[0].get("SpacingBetweenSlices") or slices[0].get("SliceThickness") or 1.0)
    moved = positions - positions[0]
    sideways = np.linalg.norm(moved - np.outer(moved @ normal, normal), axis=1).max()
    if sideways > max(0.1, UNEVEN * distance):
        raise RunnerError(
            f"The slices of {name} are shifted sideways by up to {sideways:.1f} mm: the gantry was tilted. Resample "
            "the series to straight slices first."
        )
    spacing = [distance, *(float(value) for value in slices[0].PixelSpacing)]
    return Series(slices, spacing, np.stack([along_row, along_column, normal], axis=1))


def segment_series(
    predictor: Predictor, case: Case, folder: Path, profile: Profile, progress: Progress, orientation: str | None
) -> Path:
    """Read, segment and write one series. The file is read back and compared; returns the file.

    Args:
        orientation: of the model's training images, such as ``RAS`` or ``LPS``; None: as recorded in the model.

    Raises:
        RunnerError: if the series cannot be segmented, or the file that is read back differs.
    """
    import SimpleITK as sitk  # noqa: N813

    model = predictor.model
    code = "RAS" if model.reader in REORIENTED else orientation or model.orientation
    if code is None:
        raise RunnerError(
            "It is not known how this model's training images are oriented in their files, so left and right might "
            "be exchanged. State it: --orientation RAS (or LPS, LAS, ...: nibabel.aff2axcodes of a training image's "
            "affine)"
        )
    with profile.stage("reading"):
        series = read_series(case.files[0])
        turned = sitk.DICOMOrient(_as_itk(_intensities(series, case.name), series), code)

    def read() -> tuple[Array, list[float]]:
        array = sitk.GetArrayFromImage(turned)[None].astype(np.float32)
        return array, [float(value) for value in turned.GetSpacing()[::-1]]

    found = sitk.GetImageFromArray(predictor.segment(read, None, profile, progress))
    found.CopyInformation(turned)
    original = sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(series.direction.ravel().tolist())
    segmented = sitk.GetArrayFromImage(sitk.DICOMOrient(found, original))
    with profile.stage("writing"):

        def write(file: Path) -> None:
            _segmentation_object(segmented, series, model).save_as(file)
            check_written(file, segmented, series, model)

        return write_atomically(folder, f"{case.name}.dcm", write)


def _intensities(series: Series, name: str) -> Array:
    """``(slices, rows, columns)`` float32; for a CT in Hounsfield units."""
    try:
        return np.stack(
            [
                read.pixel_array * np.float32(read.get("RescaleSlope", 1)) + np.float32(read.get("RescaleIntercept", 0))
                for read in series.slices
            ]
        ).astype(np.float32)
    except Exception as error:  # pydicom's decoders may raise anything
        raise RunnerError(f"The voxels of {name} cannot be read: {first_line(error)}") from error


def _as_itk(voxels: Array, series: Series) -> Any:
    import SimpleITK as sitk  # noqa: N813

    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing(series.spacing[::-1])
    image.SetOrigin([float(value) for value in series.slices[0].ImagePositionPatient])
    image.SetDirection(series.direction.ravel().tolist())
    return image


def structures(model: Model) -> list[tuple[str, list[int]]]:
    """Name and label values of every structure, in the order of the segments."""
    found = []
    for name, value in model.labels.items():
        values = [int(label) for label in np.atleast_1d(value)]
        if name != "ignore" and values != [0]:
            found.append((name, values))
    return found


def masks(segmented: Array, model: Model) -> Array:
    """``(slices, rows, columns, segments)`` uint8: the voxels of each structure."""
    return np.stack([np.isin(segmented, values) for _, values in structures(model)], axis=-1).astype(np.uint8)


def _segmentation_object(segmented: Array, series: Series, model: Model) -> Any:
    import highdicom
    from highdicom.sr.coding import CodedConcept

    algorithm = highdicom.AlgorithmIdentificationSequence(
        name=model.name, version="1", family=CodedConcept("123109", "DCM", "Artificial Intelligence")
    )
    descriptions = [
        highdicom.seg.SegmentDescription(
            segment_number=number,
            segment_label=name[:64],
            segmented_property_category=CodedConcept(*ANATOMY),
            segmented_property_type=CodedConcept(*model.codes.get(name, TISSUE)),
            algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
        )
        for number, (name, _) in enumerate(structures(model), start=1)
    ]
    return highdicom.seg.Segmentation(
        source_images=series.slices,
        pixel_array=masks(segmented, model),
        segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=descriptions,
        series_instance_uid=highdicom.UID(),
        series_number=1000 + int(series.slices[0].get("SeriesNumber") or 0),
        sop_instance_uid=highdicom.UID(),
        instance_number=1,
        manufacturer="nnunetv2_kd",
        manufacturer_model_name=model.name,
        software_versions="1",
        device_serial_number="0",
        series_description=f"Segmentation {model.name}"[:64],
    )


def check_written(file: Path, segmented: Array, series: Series, model: Model) -> None:
    """Check that the file has every segment's voxels, at their position in the patient.

    Raises:
        RunnerError: if it does not.
    """
    import highdicom

    read = highdicom.seg.segread(file)
    expected = masks(segmented, model)
    uids = [str(source.SOPInstanceUID) for source in series.slices]
    found = read.get_pixels_by_source_instance(
        uids, assert_missing_frames_are_empty=True, ignore_spatial_locations=True, rescale_fractional=False
    )
    if not np.array_equal(found, expected):
        raise RunnerError(f"{file.name} has other voxels than were written, when it is read back.")
    shared = read.SharedFunctionalGroupsSequence[0]
    turned = shared.PlaneOrientationSequence[0].ImageOrientationPatient
    size = shared.PixelMeasuresSequence[0].PixelSpacing
    places = dict(zip(uids, (np.array(s.ImagePositionPatient, dtype=float) for s in series.slices), strict=True))
    fits = np.allclose(turned, series.slices[0].ImageOrientationPatient, atol=SAME)
    fits = fits and np.allclose(size, series.slices[0].PixelSpacing, atol=SAME)
    for frame in read.PerFrameFunctionalGroupsSequence:
        source = frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        place = np.array(frame.PlanePositionSequence[0].ImagePositionPatient, dtype=float)
        fits = fits and np.allclose(place, places[str(source)], atol=SAME)
    if not fits:
        raise RunnerError(f"{file.name} is at another position than the series, when it is read back.")
