"""Find images in a folder, named as in nnU-Net, and check that their files exist, are complete, and can be read."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from nnunetv2.utilities.utils import get_identifiers_from_splitted_dataset_folder

from nnunetv2_kd.errors import KDError, listing
from nnunetv2_kd.runner.complete_files import why_incomplete

SHOWN = 10


def cases_in(folder: Path, ending: str) -> list[str]:
    """The cases of a folder with ``CASE_0000.nii.gz`` and so on, sorted.

    Raises:
        KDError: if it is not a folder, holds no image, or holds files with other names.
    """
    if not folder.is_dir():
        raise KDError(f"-i {folder} is not a folder.")
    check_names(folder, ending)
    cases = [str(case) for case in get_identifiers_from_splitted_dataset_folder(str(folder), ending) if case]
    if not cases:
        raise KDError(f"-i {folder} holds no image named CASE_0000{ending}, as the models of this dataset expect.")
    return cases


def reader_of(plans: Mapping[str, Any], dataset_json: Mapping[str, Any]) -> type:
    """nnU-Net's reader class for a model's images: the one that its plans name and that its training used. If they name
    none, it is chosen by the files' ending."""
    if "image_reader_writer" in plans:
        found: type = PlansManager(dict(plans)).image_reader_writer_class
        return found
    guessed: type = determine_reader_writer_from_dataset_json(dict(dataset_json), verbose=False)
    return guessed


def channel_files(folder: Path, case: str, ending: str) -> list[str]:
    """A case's channel files, in order."""
    named = re.compile(rf"{re.escape(case)}_\d{{4}}{re.escape(ending)}")
    return sorted(str(file) for file in folder.glob(f"*{ending}") if named.fullmatch(file.name))


def check_names(folder: Path, ending: str) -> None:
    """Check that every file with that ending is named as nnU-Net names images. nnU-Net cuts off the same number of
    characters from any other name.

    Raises:
        KDError: lists the files that are not.
    """
    named = re.compile(rf".+_\d{{4}}{re.escape(ending)}")
    others = sorted(file.name for file in folder.glob(f"*{ending}") if named.fullmatch(file.name) is None)
    if others:
        shown = others[:SHOWN] + ([f"and {len(others) - SHOWN} more"] if len(others) > SHOWN else [])
        title = f"-i {folder} holds files that are not named CASE_0000{ending} and so on, one file per channel:"
        raise KDError(f"{listing(title, shown)}\nRename them, or move them elsewhere.")


def channel_problems(folder: Path, ending: str, channels: int | None) -> list[str]:
    """Cases that lack a channel or have one too many, one line each.

    Args:
        channels: number of the model's channels, if every channel has its own file; None: the number of files does not
            tell.
    """
    named = re.compile(rf"(.+)_(\d{{4}}){re.escape(ending)}")
    problems, found = [], dict[str, list[int]]()
    for file in sorted(folder.glob(f"*{ending}")):
        if (match := named.fullmatch(file.name)) is not None:
            found.setdefault(match[1], []).append(int(match[2]))
    for case, numbers in found.items():
        expected = list(range(channels if channels is not None else len(numbers)))
        if numbers != expected:
            there = ", ".join(f"{number:04d}" for number in numbers)
            problems.append(f"{case}: has the channels {there}, expected {', '.join(f'{n:04d}' for n in expected)}")
    return problems


def file_per_channel(reader: type, dataset_json: Mapping[str, Any]) -> int | None:
    """Number of files per case, if every channel has its own file; None for colour images in one file, and for readers
    that are not nnU-Net's."""
    known = reader.__module__.startswith("nnunetv2.imageio.") and reader.__name__ != "NaturalImage2DIO"
    names = dataset_json.get("channel_names", dataset_json.get("modality", {}))
    return len(names) if known and names else None


def reading_problems(cases: Mapping[str, Sequence[str]], reader: type, channels: int, whole: bool = True) -> list[str]:
    """Why images cannot be predicted, one line per case; all cases are checked.

    Args:
        cases: the channel files of each case.
        reader: nnU-Net's reader class, see `reader_of`.
        channels: number of channels that the model expects; 0: not known.
        whole: read every voxel, and look for values that are not finite. Otherwise only the files' headers are read,
            if the format has them, which takes seconds for thousands of files.
    """
    problems = []
    for case, files in cases.items():
        problem = _reading_problem(files, reader, channels, whole)
        if problem:
            problems.append(f"{case}: {problem}")
    return problems


def _reading_problem(files: Sequence[str], reader: type, channels: int, whole: bool) -> str:
    try:
        for file in files:
            check_complete(Path(file))
        if not whole and issubclass(reader, SimpleITKIO):
            return _header_problem(files, channels)
        image, _ = reader().read_images(list(files))
    except KDError as error:
        return str(error)
    except Exception as error:  # readers may raise anything
        return f"cannot be read: {last_line(error)}"
    if channels and image.shape[0] != channels:
        return f"has {image.shape[0]} channels, the model expects {channels}"
    if not np.isfinite(image).all():
        return f"{' or '.join(Path(file).name for file in files)} holds values that are not finite numbers"
    return ""


def _header_problem(files: Sequence[str], channels: int) -> str:
    import SimpleITK as sitk  # noqa: N813

    sizes = []
    for file in files:
        header = sitk.ImageFileReader()
        header.SetFileName(file)
        header.ReadImageInformation()
        sizes.append(header.GetSize())
    if len(set(sizes)) > 1:
        return f"its channels have different sizes: {', '.join('×'.join(map(str, size)) for size in sizes)}"
    return f"has {len(files)} channels, the model expects {channels}" if channels and len(files) != channels else ""


def last_line(error: Exception) -> str:
    """The last line with text in a library's error message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def check_complete(file: Path) -> None:
    """Check that a NIfTI file (``.nii``, ``.nii.gz``) has all the voxels that its header announces. Other formats are
    left to their readers.

    Raises:
        KDError: if voxels are missing.
    """
    problem = why_incomplete(file)
    if problem:
        raise KDError(f"{file.name} cannot be read: {problem}")
