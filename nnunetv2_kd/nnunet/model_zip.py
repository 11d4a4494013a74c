"""Trained models in a zip from ``nnUNetv2_export_model_to_zip``: ``DATASET/TRAINER__PLANS__CONFIGURATION/...``."""

import shutil
import stat
import tempfile
import zipfile
import zlib
from functools import lru_cache
from pathlib import Path, PurePosixPath

from nnunetv2_kd.errors import KDError, listing
from nnunetv2_kd.nnunet.model_files import printable
from nnunetv2_kd.nnunet.model_folder import CheckpointPath, Fold, fold_name, parse_model_name

_unpacked: list[tempfile.TemporaryDirectory[str]] = []  # removed when the process ends


def unpack(file: Path, configuration: str, fold: Fold, checkpoint_name: str) -> CheckpointPath:
    """Unpack one checkpoint of a zip, with the model's and the fold's other files, into a temporary folder.

    Args:
        file: the zip.
        configuration: the configuration to use if the zip holds several models.
        fold: a number or ``all``.
        checkpoint_name: the file's name.

    Raises:
        KDError: if the file is not a zip, holds no model or several that fit, or lacks the checkpoint.
    """
    try:
        return _unpack(file, file.stat().st_mtime_ns, configuration, fold, checkpoint_name)
    except (OSError, zipfile.BadZipFile, zlib.error, EOFError, ValueError, RuntimeError, NotImplementedError) as error:
        if isinstance(error, KDError):
            raise
        raise KDError(f"The teacher {file} cannot be unpacked: {error}") from error


@lru_cache  # a teacher is looked up more than once
def _unpack(file: Path, _changed: int, configuration: str, fold: Fold, checkpoint_name: str) -> CheckpointPath:
    with zipfile.ZipFile(file) as archive:
        _check_content(archive)
        files = [PurePosixPath(name) for name in archive.namelist() if not name.endswith("/")]
        model = _pick(file, files, configuration)
        wanted = model / f"fold_{fold}" / checkpoint_name
        if wanted not in files:
            raise KDError(_missing_message(file, model, files, fold, checkpoint_name))
        folder = tempfile.TemporaryDirectory(prefix="nnunetv2_kd_")
        _unpacked.append(folder)
        archive.extractall(folder.name, [str(name) for name in files if _belongs_to_model(name, model, wanted)])
    return CheckpointPath(Path(folder.name) / model, fold, checkpoint_name, file, str(model))


def _check_content(archive: zipfile.ZipFile) -> None:
    """Check that everything in the zip unpacks into the folder, and fits on the disk.

    Raises:
        zipfile.BadZipFile: if it does not.
    """
    for part in archive.infolist():
        place = PurePosixPath(part.filename)
        is_link = stat.S_ISLNK(part.external_attr >> 16)
        if place.is_absolute() or ".." in place.parts or "\\" in part.filename or ":" in part.filename or is_link:
            raise zipfile.BadZipFile(f"{printable(part.filename)} would be unpacked outside of the folder")
    size, free = sum(part.file_size for part in archive.infolist()), shutil.disk_usage(tempfile.gettempdir()).free
    if size > free:
        raise zipfile.BadZipFile(f"it unpacks to {size} bytes, and {tempfile.gettempdir()} has {free} left")


def _belongs_to_model(name: PurePosixPath, model: PurePosixPath, wanted: PurePosixPath) -> bool:
    """Whether a file belongs to the model and not to another fold; of the checkpoints, only the wanted one does."""
    if model not in name.parents or (name.suffix == ".pth" and name != wanted):
        return False
    first = name.relative_to(model).parts[0]
    return not first.startswith("fold_") or first == wanted.parent.name


def _pick(file: Path, files: list[PurePosixPath], configuration: str) -> PurePosixPath:
    models = sorted(name.parent for name in files if name.name == "plans.json")
    names = [(model, parse_model_name(model.name)) for model in models]
    fitting = [model for model, name in names if name is not None and name.configuration == configuration]
    if len(models) == 1 or len(fitting) == 1:
        return (models if len(models) == 1 else fitting)[0]
    title = f"The zip {file} holds {len(fitting)} models of configuration {configuration}"
    found = (
        listing(f"{title} among:", [str(model) for model in models]) if models else f"The zip {file} holds no model."
    )
    raise KDError(f"{found}\nUnpack it, and name one model's folder: teacher: {{folder: ...}}")


def _missing_message(
    file: Path, model: PurePosixPath, files: list[PurePosixPath], fold: Fold, checkpoint_name: str
) -> str:
    there = [name for name in files if name.suffix == ".pth" and name.parent.parent == model]
    found = [f"{{fold: {fold_name(Path(name.parent))}, checkpoint: {name.name}}}" for name in there]
    title = f"The zip {file} holds no {checkpoint_name} of fold {fold}. Name one of these under 'teacher:':"
    return listing(title, found or ["no checkpoint"])
