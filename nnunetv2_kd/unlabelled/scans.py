"""The scans to label: find them in a folder, read them, and compare them with the labelled cases."""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from nnunetv2_kd.errors import KDError
from nnunetv2_kd.nnunet.images import check_complete

CHANNEL = re.compile(r"(.+)_(\d{4})")


@dataclass(frozen=True)
class Scan:
    """One scan: the name of its case, and its channel files in order."""

    case: str
    files: tuple[Path, ...]


def find_scans(folder: Path, ending: str, channels: Sequence[str]) -> tuple[list[Scan], list[str]]:
    """The scans of a folder, sorted by name.

    Args:
        folder: with ``CASE_0000.nii.gz``, ``CASE_0001.nii.gz`` and so on, one file per channel. For a model with one
            channel, ``CASE.nii.gz`` is also accepted.
        ending: of the files, such as ``.nii.gz``.
        channels: names of the model's channels.

    Returns:
        The scans, and what is wrong with the others, one line each.
    """
    if not folder.is_dir():
        return [], [f"-i {folder} is not a folder"]
    found: dict[str, dict[int, Path]] = {}
    problems = []
    for file in sorted(folder.glob(f"*{ending}")):
        if file.name.startswith("."):  # hidden files, as macOS leaves them
            continue
        stem = file.name.removesuffix(ending)
        match = CHANNEL.fullmatch(stem)
        case, channel = (match[1], int(match[2])) if match else (stem, 0)
        files = found.setdefault(case, {})
        if channel in files:
            problems.append(f"{case}: two files for one scan, {files[channel].name} and {file.name}")
        elif not match and len(channels) > 1:
            problems.append(f"{file.name}: expected {stem}_0000{ending} and so on, one file per channel")
        files.setdefault(channel, file)
    if not found:
        problems.append(f"-i {folder} holds no image that ends in {ending}, as the teacher expects")
    scans = [Scan(case, tuple(files[channel] for channel in sorted(files))) for case, files in found.items()]
    return scans, problems


def check_scans(
    scans: Sequence[Scan], reader: Any, channels: Sequence[str], labelled: Mapping[str, Sequence[str]]
) -> list[str]:
    """Read every scan, and every labelled case that could be the same image.

    Args:
        scans: from `find_scans`.
        reader: nnU-Net's reader class for the model.
        channels: names of the model's channels.
        labelled: the channel files of each labelled case.

    Returns:
        One line per scan that cannot be read, has other channels than the model, holds values that are not numbers, has
        the name of a labelled case, or is a labelled case's image.
    """
    problems, images = [], {}
    for scan in tqdm(scans, desc="reading the scans", unit="scan", disable=None):
        if scan.case in labelled:
            problems.append(f"{scan.case} is already a labelled case: remove the scan, or its label")
            continue
        problem, key = _read(reader, scan.files, channels)
        if problem:
            problems.append(f"{scan.case}: {problem}")
        else:
            images[scan.case] = key
    problems += _find_duplicates(images, reader, labelled)
    return problems


def _find_duplicates(images: Mapping[str, str], reader: Any, labelled: Mapping[str, Sequence[str]]) -> Iterable[str]:
    """Scans that are a labelled case's image under another name. They would be trained on, with a teacher's labels,
    even in the fold that validates on their case."""
    known = {}
    for case, files in tqdm(labelled.items(), desc="reading the labelled cases", unit="case", disable=None):
        problem, key = _read(reader, files, ())
        if problem:
            yield f"labelled case {case}: {problem}"
        known[key] = case
    for case, key in images.items():
        if key in known:
            yield f"{case} is the image of the labelled case {known[key]}: remove one of them"


def _read(reader: Any, files: Iterable[Any], channels: Sequence[str]) -> tuple[str, str]:
    """What is wrong with an image, in words, and a key that only the same voxels have."""
    try:
        for file in files:
            check_complete(Path(file))
        image, _ = reader.read_images([str(file) for file in files])
    except KDError as error:
        return str(error), ""
    except Exception as error:  # a reader may raise anything
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return f"cannot be read: {lines[-1] if lines else type(error).__name__}", ""
    if channels and image.shape[0] != len(channels):
        return f"has {image.shape[0]} channels, the teacher expects {len(channels)}: {', '.join(channels)}", ""
    if not np.isfinite(image).all():
        return "holds values that are not finite numbers", ""
    return "", f"{image.shape} {hashlib.sha256(image.tobytes()).hexdigest()}"
