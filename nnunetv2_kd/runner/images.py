"""Images as nnU-Net's readers read them, and segmentations as its writers write them."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .complete_files import why_incomplete
from .errors import RunnerError, first_line

Array = NDArray[Any]


@dataclass(frozen=True)
class Image:
    """One case.

    Attributes:
        voxels: ``(C, Z, Y, X)`` float32.
        spacing: mm, along Z, Y, X.
        write: writes a segmentation ``(Z, Y, X)`` of this image to a file, with the image's position in space.
    """

    voxels: Array
    spacing: list[float]
    write: Callable[[Array, Path], None]


@dataclass(frozen=True)
class Reader:
    """The counterpart of one of nnU-Net's readers.

    Attributes:
        packages: that it needs, besides numpy.
        read: reads the files of a case's channels.
    """

    packages: tuple[str, ...]
    read: Callable[[Sequence[Path]], Image]


def read_image(reader: str, files: Sequence[Path], channels: int) -> Image:
    """Read one case.

    Args:
        reader: the name of nnU-Net's reader.
        files: the channels, in order.
        channels: the number of channels that the model expects.

    Raises:
        RunnerError: if a file cannot be read or is truncated, or the image is not what the model expects.
    """
    for file in files:
        problem = why_incomplete(file)
        if problem:
            raise RunnerError(f"{file.name} cannot be read: {problem}.")
    try:
        image = READERS[reader].read(files)
    except (RunnerError, ImportError, MemoryError):
        raise
    except Exception as error:  # readers may raise anything
        raise RunnerError(f"{files[0].name} cannot be read: {first_line(error)}") from error
    if image.voxels.size == 0:
        raise RunnerError(f"{files[0].name} is empty.")
    if len(image.voxels) != channels:
        raise RunnerError(f"{files[0].name} has {len(image.voxels)} channels, the model expects {channels}.")
    if not all(np.isfinite(channel).all() for channel in image.voxels):
        raise RunnerError(f"{files[0].name} contains voxels that are not finite numbers (NaN or infinity).")
    return image


def _join_channels(images: Sequence[Array], files: Sequence[Path]) -> Array:
    shapes = [image.shape for image in images]
    if any(shape != shapes[0] for shape in shapes):
        raise RunnerError(f"{files[0].name}: the channels differ in size: {', '.join(map(str, shapes))}.")
    # the same call as in nnU-Net, because sums over an image depend on its order in memory
    joined: Array = np.vstack(images, dtype=np.float32, casting="unsafe")
    return joined


def _same_spacing(spacings: Sequence[Any], files: Sequence[Path]) -> None:
    if not all(np.allclose(spacings[0], other) for other in spacings[1:]):
        raise RunnerError(f"{files[0].name}: the channels differ in spacing: {', '.join(map(str, spacings))}.")


def _small(segmented: Array) -> Array:
    return segmented.astype(np.uint8 if np.max(segmented) < 255 else np.uint16, copy=False)


def _read_itk(files: Sequence[Path], orientation: str | None = None) -> Image:
    import SimpleITK as sitk  # noqa: N813

    voxels, spacings, itk, original = [], [], None, ""
    for file in files:
        read = sitk.ReadImage(str(file))
        if orientation is not None:
            original = sitk.DICOMOrientImageFilter_GetOrientationFromDirectionCosines(read.GetDirection())
            read = sitk.DICOMOrient(read, orientation)
        array = sitk.GetArrayFromImage(read)
        spacing = [float(value) for value in read.GetSpacing()[::-1]]
        if array.ndim == 2:
            array, spacing = array[None, None], [999 * max(spacing), *spacing]
        elif array.ndim == 3:
            array = array[None]
        elif array.ndim == 4:  # several channels in one file
            spacing = spacing[1:]
        else:
            raise RunnerError(f"{file.name} has {array.ndim} dimensions, expected 2, 3 or 4.")
        voxels.append(array)
        spacings.append([abs(value) for value in spacing])
        itk = itk if itk is not None else read
    _same_spacing(spacings, files)
    place = _itk_place(itk)

    def write(segmented: Array, file: Path) -> None:
        flat = segmented[0] if len(place[0]) == 2 else segmented
        found = sitk.GetImageFromArray(_small(flat))
        found.SetSpacing(place[0])
        found.SetOrigin(place[1])
        found.SetDirection(place[2])
        if orientation is not None:
            found = sitk.DICOMOrient(found, original)
        sitk.WriteImage(found, str(file), True)

    return Image(_join_channels(voxels, files), spacings[0], write)


def _itk_place(image: Any) -> tuple[Sequence[float], Sequence[float], Sequence[float]]:
    """Spacing, origin and direction; for an image with four dimensions, those of space."""
    count = min(3, image.GetDimension())
    direction = np.reshape(image.GetDirection(), (image.GetDimension(),) * 2)[:count, :count]
    return image.GetSpacing()[:count], image.GetOrigin()[:count], [float(value) for value in direction.ravel()]


def _read_itk_reoriented(files: Sequence[Path]) -> Image:
    return _read_itk(files, "RAS")


def _read_nibabel(files: Sequence[Path], reorient: bool = False) -> Image:
    import nibabel
    from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

    voxels, spacings, affine, original = [], [], None, None
    for file in files:
        read: Any = nibabel.load(file)
        if read.ndim != 3:
            raise RunnerError(f"{file.name} has {read.ndim} dimensions, expected 3.")
        original = original if original is not None else read.affine
        if reorient:
            read = read.as_reoriented(io_orientation(read.affine))
        affine = affine if affine is not None else read.affine
        spacings.append([float(value) for value in read.header.get_zooms()[::-1]])
        voxels.append(read.get_fdata().transpose((2, 1, 0))[None])
    _same_spacing(spacings, files)

    def write(segmented: Array, file: Path) -> None:
        found = nibabel.Nifti1Image(_small(segmented.transpose((2, 1, 0))), affine=affine)
        if reorient:
            back = ornt_transform(axcodes2ornt("RAS"), io_orientation(original))
            found = found.as_reoriented(back)
        nibabel.save(found, file)

    return Image(_join_channels(voxels, files), spacings[0], write)


def _read_nibabel_reoriented(files: Sequence[Path]) -> Image:
    return _read_nibabel(files, True)


def _read_natural(files: Sequence[Path]) -> Image:
    """PNG, BMP and TIFF, grey or in colour."""
    from imageio.v3 import imread, imwrite

    voxels = []
    for file in files:
        is_tiff = file.suffix.lower() in (".tif", ".tiff")
        if is_tiff:
            import tifffile

        array = np.asarray(tifffile.imread(file) if is_tiff else imread(file))
        if array.ndim == 3 and array.shape[-1] not in (3, 4) and array.shape[0] in (3, 4):
            array = array.transpose((1, 2, 0))
        if array.ndim == 3 and array.shape[-1] in (3, 4):
            array = array.transpose((2, 0, 1))[:, None]
        elif array.ndim == 2:
            array = array[None, None]
        else:
            raise RunnerError(f"{file.name} is of shape {array.shape}, expected a grey or a colour image.")
        voxels.append(array)

    def write(segmented: Array, file: Path) -> None:
        if file.suffix.lower() in (".tif", ".tiff"):
            import tifffile

            tifffile.imwrite(file, _small(segmented[0]))
        else:
            imwrite(file, _small(segmented[0]))

    return Image(_join_channels(voxels, files), [999, 1, 1], write)


def _read_tiff(files: Sequence[Path]) -> Image:
    """TIFF with three dimensions; the spacing is in a JSON file beside it."""
    import tifffile

    voxels = []
    for file in files:
        array = tifffile.imread(file)
        if array.ndim != 3:
            raise RunnerError(f"{file.name} has {array.ndim} dimensions, expected 3.")
        voxels.append(array[None])
    sidecar = files[0].with_name(files[0].name[: -len(files[0].suffix) - 5] + ".json")  # without _0000
    spacing = json.loads(sidecar.read_text(encoding="utf-8"))["spacing"] if sidecar.is_file() else [1, 1, 1]
    if len(spacing) != 3 or not all(value > 0 for value in spacing):
        raise RunnerError(f"{sidecar.name}: spacing must be three numbers above 0, found {spacing}.")

    def write(segmented: Array, file: Path) -> None:
        tifffile.imwrite(file, data=_small(segmented), compression="zlib")
        file.with_suffix(".json").write_text(json.dumps({"spacing": spacing}), encoding="utf-8")

    return Image(_join_channels(voxels, files), list(spacing), write)


READERS = {
    "SimpleITKIO": Reader(("SimpleITK",), _read_itk),
    "SimpleITKIOWithReorient": Reader(("SimpleITK",), _read_itk_reoriented),
    "NibabelIO": Reader(("nibabel",), _read_nibabel),
    "NibabelIOWithReorient": Reader(("nibabel",), _read_nibabel_reoriented),
    "NaturalImage2DIO": Reader(("imageio", "tifffile"), _read_natural),
    "Tiff3DIO": Reader(("tifffile",), _read_tiff),
}
