"""Who works in a folder: one training of a fold at a time, and a store that is read is not written.

A lock is the operating system's, on a file, so it ends with its process, however that ends. Where a file system has no
locks, the process that the file names decides, as far as it is of this machine.
"""

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nnunetv2_kd.errors import KDError

LOCK = "lock"
LOCK_OF_TRAINING = "lock_of_training"  # in the folder of a fold
ALONE, SHARED = "alone", "shared"
_open: set[Any] = set()


@contextmanager
def holding(file: Path, shared: bool = False) -> Iterator[str]:
    """Hold the lock inside.

    Args:
        file: of the lock; made where it is missing. It names those who hold it, a line each.
        shared: with others who share it.

    Yields:
        "" where it is held, else who holds it: ``123 on host``.
    """
    stream = _opened(file)
    if stream is None:  # nobody can write here, so nobody does
        yield ""
        return
    try:
        if not _locks(stream, shared):
            yield _holders(stream)
            return
        if not _is_there(stream, file):
            yield "unknown"
            return
        _open.add(stream)
        me = f"{os.getpid()} {socket.gethostname()} {SHARED if shared else ALONE}\n"
        _write(stream, [*(line for line in _lines(stream) if shared and _lives(line)), me])
        try:
            yield ""
        finally:
            _write(stream, [line for line in _lines(stream) if shared and line != me])
            _open.discard(stream)
    finally:
        stream.close()


@contextmanager
def locked(folder: Path) -> Iterator[str]:
    """Within this context, no other process works in the folder.

    The lock is the operating system's, on the file ``lock``, so it ends with its process. If the file system does not
    support locks, the folder counts as locked while the process named in the file lives.

    Yields:
        A message about a process that left the folder unfinished, or "".

    Raises:
        KDError: if another process is at work; names it.
    """
    file = folder / LOCK
    with file.open("a+") as stream:
        before = "".join(_lines(stream)).split()
        if not _locks(stream, shared=False):
            raise KDError(
                f"Another process works in {folder}: {' on '.join(before[:2]) or 'unknown'} (process id on host). "
                f"Wait until it has ended, or end it. What it has finished is kept. If it has ended: rm {file}"
            )
        stream.truncate(0)
        stream.write(f"{os.getpid()} {socket.gethostname()}\n")
        stream.flush()
        try:
            yield f"Process {' on '.join(before)} left {folder} unfinished: going on from there." if before else ""
        except KDError:  # the user's problem, and nothing is unfinished
            stream.truncate(0)
            raise
        stream.truncate(0)


def holders(file: Path) -> str:
    """Who holds a lock, as `holding` says it; "" for nobody."""
    if not file.is_file():
        return ""
    with holding(file) as others:
        return others


def of_readers(folder: Path) -> Path:
    """The lock of those who read what is in a folder."""
    return folder / f"{LOCK}_of_readers"


def _opened(file: Path) -> Any:
    try:
        return file.open("a+")
    except OSError:  # no right to write here
        return file.open() if file.is_file() else None


def _is_there(stream: Any, file: Path) -> bool:
    """Whether it is still this file that has the name, and none that was made since."""
    try:
        return os.path.samestat(os.fstat(stream.fileno()), file.stat())
    except FileNotFoundError:
        return False


def _locks(stream: Any, shared: bool) -> bool:
    try:
        import fcntl

        fcntl.flock(stream, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except (ImportError, OSError) as error:
        if isinstance(error, OSError) and error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        return not any(_lives(line) for line in _lines(stream) if not shared or ALONE in line.split())
    return True


def _holders(stream: Any) -> str:
    return ", ".join(" on ".join(line.split()[:2]) for line in _lines(stream)) or "unknown"


def _lines(stream: Any) -> list[str]:
    """By the stream and not by the file's name: a start that is taken back removes the file."""
    stream.seek(0)
    return [line for line in stream.read().splitlines(keepends=True) if line.strip()]


def lives(process: int) -> bool:
    """Whether a process of this machine is there that is not this one."""
    if process == os.getpid():
        return False
    if os.name == "nt":  # there, signal 0 does not only test for the process
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _lives(line: str) -> bool:
    """Of a process on another machine it is not known."""
    process, host = [*line.split(), "", ""][:2]
    return host != socket.gethostname() or not process.isdigit() or lives(int(process))


def _write(stream: Any, lines: list[str]) -> None:
    if stream.writable():
        stream.seek(0)
        stream.truncate()
        stream.write("".join(lines))
        stream.flush()


def _close_in_child() -> None:
    """A forked data worker that outlives its training must not keep the lock."""
    for stream in _open:
        stream.close()
    _open.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)
