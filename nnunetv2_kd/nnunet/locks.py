"""Locks on folders: only one training of a fold at a time, and no writing into a store that is being read.

The operating system locks a file, so a lock ends with its process, however that ends. On file systems without locks, a
folder counts as locked while the process named in the file is alive, or if that process is on another machine.
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
def hold_lock(file: Path, shared: bool = False) -> Iterator[str]:
    """Hold a lock within this context.

    Args:
        file: of the lock; created if it is missing. It names the processes that hold the lock, one per line.
        shared: together with other processes that also share it.

    Yields:
        "" if the lock is held; otherwise who holds it: ``123 on host``.
    """
    stream = _open_lock(file)
    if stream is None:  # nobody can write here, so no lock is needed
        yield ""
        return
    try:
        if not _try_lock(stream, shared):
            yield _holders(stream)
            return
        if not _is_current(stream, file):
            yield "unknown"
            return
        _open.add(stream)
        me = f"{os.getpid()} {socket.gethostname()} {SHARED if shared else ALONE}\n"
        _write(stream, [*(line for line in _lines(stream) if shared and _holder_is_alive(line)), me])
        try:
            yield ""
        finally:
            _write(stream, [line for line in _lines(stream) if shared and line != me])
            _open.discard(stream)
    finally:
        stream.close()


@contextmanager
def lock_folder(folder: Path) -> Iterator[str]:
    """Within this context, no other process works in the folder.

    The lock is the operating system's, on the file ``lock``; see this module.

    Yields:
        A message about a process that left the folder unfinished, or "".

    Raises:
        KDError: if another process is at work; names it.
    """
    file = folder / LOCK
    with file.open("a+") as stream:
        before = "".join(_lines(stream)).split()
        if not _try_lock(stream, shared=False):
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
    """Who holds a lock, in the form of `hold_lock`; "" if nobody does."""
    if not file.is_file():
        return ""
    with hold_lock(file) as others:
        return others


def readers_lock(folder: Path) -> Path:
    """The lock of the processes that read a folder."""
    return folder / f"{LOCK}_of_readers"


def _open_lock(file: Path) -> Any:
    try:
        return file.open("a+")
    except OSError:  # no permission to write here
        return file.open() if file.is_file() else None


def _is_current(stream: Any, file: Path) -> bool:
    """Whether the open file still has this name, and no newer file has replaced it."""
    try:
        return os.path.samestat(os.fstat(stream.fileno()), file.stat())
    except FileNotFoundError:
        return False


def _try_lock(stream: Any, shared: bool) -> bool:
    try:
        import fcntl

        fcntl.flock(stream, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except (ImportError, OSError) as error:
        if isinstance(error, OSError) and error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        return not any(_holder_is_alive(line) for line in _lines(stream) if not shared or ALONE in line.split())
    return True


def _holders(stream: Any) -> str:
    return ", ".join(" on ".join(line.split()[:2]) for line in _lines(stream)) or "unknown"


def _lines(stream: Any) -> list[str]:
    """The lines of the open file. Its name is not used, because a training that is undone removes the file."""
    stream.seek(0)
    return [line for line in stream.read().splitlines(keepends=True) if line.strip()]


def is_alive(process: int) -> bool:
    """Whether this machine has a process with this number, other than the current one."""
    if process == os.getpid():
        return False
    if os.name == "nt":  # on Windows, signal 0 does more than test for the process
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _holder_is_alive(line: str) -> bool:
    """Whether the process of a line is alive; one on another machine counts as alive, because that is not known."""
    process, host = [*line.split(), "", ""][:2]
    return host != socket.gethostname() or not process.isdigit() or is_alive(int(process))


def _write(stream: Any, lines: list[str]) -> None:
    if stream.writable():
        stream.seek(0)
        stream.truncate()
        stream.write("".join(lines))
        stream.flush()


def _close_in_child() -> None:
    """Close the locks in a forked data worker, so that one that outlives its training does not keep them."""
    for stream in _open:
        stream.close()
    _open.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)
