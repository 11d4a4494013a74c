"""If a file cannot be written, say which one, why, and what is kept."""

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from nnunetv2_kd.errors import KDError

WRITER = re.compile(r"PytorchStreamWriter|inline_container|cannot be opened|Parent directory")  # of torch.save
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
CLOSED = (errno.EROFS, errno.EACCES, errno.EPERM)


@contextmanager
def explain_failed_writes(folder: Path, kept: Callable[[], str]) -> Iterator[None]:
    """If a file cannot be written within this context, say which one and why.

    Args:
        folder: the folder that files are written to.
        kept: returns the message about existing files, and how to continue.

    Raises:
        KDError: instead of the error of the system, or of the library that writes.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        refusal = _refusal(error, folder)
        if refusal is None:
            raise
        raise KDError(f"{_why(refusal, folder)}\n{kept()}") from error


@contextmanager
def whole_folder(output: Path) -> Iterator[Path]:
    """Within this context, an empty folder beside ``output``, which gets that name at the end. After an error, nothing
    is left behind.

    Args:
        output: does not exist, or is empty.

    Raises:
        KDError: if something cannot be written.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    try:
        with explain_failed_writes(output.parent, lambda: "Nothing was written. Then repeat the command."):
            yield unfinished
            unfinished.chmod(0o755)
            if output.exists():
                output.rmdir()
            os.rename(unfinished, output)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _refusal(error: OSError | RuntimeError, folder: Path) -> OSError | None:
    """The system's error that kept a file from being written; None if there was none. Libraries that write in C++ do
    not pass it on, so their errors count as such if the folder cannot be written to now."""
    if isinstance(error, KDError):  # it names the file, but not what is kept and how to continue
        return _refusal(error.__cause__, folder) if isinstance(error.__cause__, OSError) else None
    if isinstance(error, OSError):
        return error if error.errno in FULL + CLOSED else None
    found = _tried(folder)
    if found is None and WRITER.search(str(error)):
        return OSError(errno.ENOSPC, "")
    return found


def _tried(folder: Path) -> OSError | None:
    """The system's error for a file of one mebibyte; None if it can be written."""
    probe = folder / ".probe"
    try:
        probe.write_bytes(b"0" * 2**20)
    except OSError as error:
        return error if error.errno in FULL + CLOSED else None
    finally:
        if probe.is_file():
            probe.unlink()
    return None


def _why(error: OSError, folder: Path) -> str:
    file = error.filename or folder
    if error.errno in FULL:
        free = shutil.disk_usage(folder).free / 2**20
        return f"{file} cannot be written: the disk or the quota is full ({free:.0f} MiB free). Free some space."
    if error.errno == errno.EROFS:
        return f"{file} cannot be written: its file system is read-only now. Have it mounted with write access again."
    return f"{file} cannot be written: {error.strerror}. Restore the write permission: chmod -R u+w '{folder}'"
