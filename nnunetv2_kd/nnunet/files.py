"""Read files with clear errors, write them atomically, and recognise them by fingerprints."""

import hashlib
import json
import os
import tempfile
from pathlib import Path, PurePosixPath
from typing import Any

from nnunetv2_kd.errors import KDError

Fingerprint = dict[str, Any]
UNFINISHED = ".unfinished"


def fingerprint(file: Path) -> Fingerprint:
    """Size, modification time and SHA-256 of a file, as plain values."""
    state = file.stat()
    return {"size": state.st_size, "mtime_ns": state.st_mtime_ns, "sha256": sha256(file)}


def is_same(file: Path, known: Fingerprint) -> bool:
    """Whether a file still has the content of a fingerprint. It is read only if its modification time differs, for
    example after a copy."""
    try:
        state = file.stat()
    except OSError:
        return False
    if state.st_size != known["size"]:
        return False
    return state.st_mtime_ns == known["mtime_ns"] or sha256(file) == known["sha256"]


def read_json(file: Path, name: str = "", mend: str = "") -> Any:
    """The content of a JSON file.

    Args:
        name: what to call it in an error message; default: its full path.
        mend: what the user can do about a file that is not JSON.

    Raises:
        KDError: if it cannot be read or is not JSON.
    """
    name = name or str(file)
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise KDError(f"{name} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise KDError(f"{name} is not valid JSON ({error}).{mend and ' ' + mend}") from error


def write_atomically(file: Path, content: bytes) -> None:
    """Write a file under a temporary name, and rename it once it is on disk.

    Raises:
        OSError: if that is not possible; nothing is left behind.
    """
    unfinished = file.with_name(file.name + UNFINISHED)
    try:
        with unfinished.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(unfinished, file)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def write_text(file: Path, text: str) -> None:
    """Like `write_bytes`, for a text in UTF-8."""
    write_bytes(file, text.encode(errors="replace"))


def write_bytes(file: Path, content: bytes) -> None:
    """Like `write_atomically`.

    Raises:
        KDError: if the folder cannot be written to, or the disk is full; an earlier file is unchanged then.
    """
    try:
        write_atomically(file, content)
    except OSError as error:
        kept = " What was there before is kept." if file.is_file() else ""
        raise KDError(f"{file} cannot be written: {error.strerror or error}.{kept}") from error


def set_aside(file: Path) -> str:
    """Rename a file that cannot be read, so that it is neither lost nor in the way; returns a message."""
    number = 1
    while (place := file.with_name(f"{file.name}.unreadable{number}")).exists():
        number += 1
    try:
        os.replace(file, place)
    except OSError as error:
        return f"{file} can be neither read nor set aside: {error.strerror or error}"
    return f"{file} cannot be read and was set aside as {place.name}"


def sha256(file: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _sha256(stream)


def _sha256(stream: Any) -> str:
    digest = hashlib.sha256()  # Python 3.10 has no file_digest
    for block in iter(lambda: stream.read(1 << 20), b""):
        digest.update(block)
    return digest.hexdigest()


def is_inside(folder: Path, name: Any) -> bool:
    """Whether a name from a file of unknown origin is that of a file in this folder, after following links."""
    if not isinstance(name, str) or not name or "\0" in name or "\\" in name:
        return False
    place = PurePosixPath(name)
    if place.is_absolute() or ".." in place.parts:
        return False
    try:
        return (folder / name).resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError, UnicodeError):  # a loop of links, or a name that is too long or no text
        return False


def why_not_writable(folder: Path) -> str:
    """Why files cannot be written into a folder, which is created if missing; "" if they can."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return ""
    except OSError as error:
        return error.strerror or str(error)


def check_writable(folder: Path, flag: str = "-o") -> None:
    """Create an output folder, and check that it can be written to.

    Raises:
        KDError: if it cannot be created or written to.
    """
    problem = why_not_writable(folder)
    if problem:
        raise KDError(
            f"{flag} {folder} cannot be written to: {problem}. Choose another folder, or: chmod u+w '{folder}'"
        )
