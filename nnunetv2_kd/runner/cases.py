"""Which cases to predict, and where their segmentations are written."""

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .errors import RunnerError
from .model import Model

UNFINISHED = ".unfinished_"


@dataclass(frozen=True)
class Case:
    """One case.

    Attributes:
        name: of the case, and of its segmentation's file.
        files: its channels, in order; for a DICOM series, one folder.
        previous: the segmentation of the previous stage, for a cascade.
    """

    name: str
    files: list[Path]
    previous: Path | None = None


def cases_in(where: Path, model: Model, previous: Path | None = None) -> list[Case]:
    """The cases of a folder with ``CASE_0000.nii.gz`` and so on, or the case of a single file.

    Args:
        previous: for a cascade, the folder with ``CASE.nii.gz`` of the previous stage.

    Raises:
        RunnerError: if there are no cases, or segmentations of the previous stage are missing.
    """
    if not where.exists():
        raise RunnerError(f"-i {where} does not exist.")
    if model.needs_previous and previous is None:
        stages = [part.previous_stage for part in model.configurations if part.previous_stage is not None]
        raise RunnerError(
            f"This model refines segmentations of {stages[0]}. Predict these images with that model first, and name "
            "the folder: --previous FOLDER"
        )
    ending = model.file_ending
    pattern = re.compile(rf"(.+)_(\d{{4}}){re.escape(ending)}")
    folder = where if where.is_dir() else where.parent
    found: dict[str, list[Path]] = {}
    for file in sorted(folder.iterdir()):
        matched = pattern.fullmatch(file.name)
        if matched:
            found.setdefault(matched[1], []).append(file)
    if where.is_file():
        matched = pattern.fullmatch(where.name)
        if matched:
            found = {matched[1]: found[matched[1]]}
        elif where.name.endswith(ending):
            found = {where.name[: -len(ending)]: [where]}
        else:
            raise RunnerError(f"-i {where.name} does not end with {ending}, as this model's images do.")
    if not found:
        raise RunnerError(f"-i {where} holds no image named CASE_0000{ending}, as this model expects.")
    of = {name: previous / f"{name}{ending}" if previous is not None else None for name in found}
    lacking = [str(file) for file in of.values() if file is not None and not file.is_file()]
    if lacking:
        raise RunnerError("\n".join(["--previous lacks segmentations:", *(f"  - {name}" for name in lacking)]))
    return [Case(name, files, of[name]) for name, files in found.items()]


def check_writable(folder: Path) -> None:
    """Make the output folder.

    Raises:
        RunnerError: if it cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise RunnerError(
            f"-o {folder} cannot be written to: {error.strerror or error}. Choose another folder."
        ) from error


def write_atomically(folder: Path, name: str, write: Callable[[Path], None]) -> Path:
    """Write a file under a temporary name, and rename it once it is complete. Files that ``write`` creates beside it
    are moved too.

    Raises:
        RunnerError: if that fails; nothing is left behind then.
    """
    try:
        with _unfinished(folder) as beside:
            write(beside / name)
            for file in sorted(beside.iterdir(), key=lambda file: file.name == name):
                with file.open("rb") as stream:
                    os.fsync(stream.fileno())
                os.replace(file, folder / file.name)
    except (OSError, RuntimeError) as error:
        problem = getattr(error, "strerror", None) or str(error).strip().splitlines()[-1]
        raise RunnerError(f"{folder / name} cannot be written: {problem}") from error
    return folder / name


@contextmanager
def _unfinished(folder: Path) -> Iterator[Path]:
    beside = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=folder))
    try:
        yield beside
    finally:
        shutil.rmtree(beside, ignore_errors=True)
