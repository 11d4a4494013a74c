"""Files that are whole or not there, that are told from others, and a lock on a folder."""

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nnunetv2_kd.errors import KDError
from nnunetv2_kd.teachers.checkpoint import sha256

Fingerprint = dict[str, Any]
LOCK = "lock"
UNFINISHED = ".unfinished"


def fingerprint(file: Path) -> Fingerprint:
    """Size, time of the last change and SHA-256 of a file, in plain values."""
    state = file.stat()
    return {"size": state.st_size, "mtime_ns": state.st_mtime_ns, "sha256": sha256(file)}


def is_same(file: Path, known: Fingerprint) -> bool:
    """Whether a file is there with the content that a fingerprint was taken of. It is read only where the time of its
    last change is another one, as after a copy."""
    try:
        state = file.stat()
    except OSError:
        return False
    if state.st_size != known["size"]:
        return False
    return state.st_mtime_ns == known["mtime_ns"] or sha256(file) == known["sha256"]


def write_whole(file: Path, content: bytes) -> None:
    """Write a file under another name and move it to its place once it is on the disk.

    Raises:
        OSError: where that is not possible; nothing is left behind then.
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


@contextmanager
def locked(folder: Path) -> Iterator[str]:
    """Nobody else works in the folder inside.

    The lock is the operating system's, on the file ``lock``, so it ends with its process. Where a file system has
    none, the process that the file names decides.

    Yields:
        What is to be told of a process that left the folder without finishing, or "".

    Raises:
        KDError: where another process is at work; names it.
    """
    file = folder / LOCK
    with file.open("a+") as stream:
        stream.seek(0)
        before = stream.read().split()
        if not _lock(stream, before):
            raise KDError(
                f"Another process works in {folder}: {' on '.join(before[:2]) or 'unknown'} (process id on host). "
                f"Wait until it has ended, or end it. What it has finished is kept. If it has ended: rm {file}"
            )
        stream.truncate(0)
        stream.write(f"{os.getpid()} {socket.gethostname()}\n")
        stream.flush()
        try:
            yield f"Process {' on '.join(before)} left {folder} unfinished: going on from there." if before else ""
        except KDError:  # refused, and nothing is unfinished
            stream.truncate(0)
            raise
        stream.truncate(0)


def _lock(stream: Any, before: list[str]) -> bool:
    try:
        import fcntl

        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (ImportError, OSError) as error:
        if isinstance(error, OSError) and error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        return not before or (before[1:] == [socket.gethostname()] and not _lives(int(before[0])))
    return True


def _lives(process: int) -> bool:
    if process == os.getpid():
        return False
    if os.name == "nt":  # where a signal of 0 is not a question
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
