"""Where memory or disk run out: what to change, and the line that goes on from the last checkpoint."""

import errno
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from nnunetv2_kd.errors import KDError
from nnunetv2_kd.nnunet.datasets import dataset_id

MEMORY = re.compile(r"out of memory|not enough memory|can't allocate memory|CUBLAS_STATUS_ALLOC_FAILED", re.IGNORECASE)
WRITER = re.compile(r"PytorchStreamWriter|inline_container|cannot be opened|Parent directory")  # of torch.save
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
CLOSED = (errno.EROFS, errno.EACCES, errno.EPERM)


@contextmanager
def explain_out_of_memory(who: str, trainer: Any) -> Iterator[None]:
    """Where memory runs out inside, it is told whose step it was and what needs less.

    Args:
        who: ``the teacher`` or ``the student``.
        trainer: one of ours.

    Raises:
        KDError: in place of torch's error.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is one
        if isinstance(error, KDError) or not (isinstance(error, MemoryError) or MEMORY.search(str(error))):
            raise
        raise KDError(_out_of_memory_message(who, trainer)) from error


def _out_of_memory_message(who: str, trainer: Any) -> str:
    configuration = trainer.configuration_manager
    patch = "x".join(str(int(side)) for side in configuration.patch_size)
    where = torch.cuda.get_device_name(trainer.device) if trainer.device.type == "cuda" else "this machine"
    lines = [
        f"{where} has not enough memory for a step of {who}, at {trainer.batch_size} patches of {patch} voxels.",
        "End what else uses it, or take less of it:",
    ]
    data = Path(trainer.preprocessed_dataset_folder)
    if who == "the teacher" and trainer.names_teacher and trainer.options.stored_teacher is None:
        line = f"nnUNetv2_kd store -d {dataset_id(data.parent.name)} -c {trainer.configuration_name} -f {trainer.fold}"
        lines.append(f"  - no teacher in memory: {line}, and then train with stored_teacher: fold_{trainer.fold}")
    if who == "the student":
        lines.append("  - a smaller student: student: {width: 0.25} in the options")
    lines.append(
        f"  - fewer patches: a smaller batch_size of {trainer.configuration_name} in plans of another name, -p"
    )
    return "\n".join([*lines, trainer.about_saved()])


@contextmanager
def explain_failed_writes(folder: Path, saved: Callable[[], str]) -> Iterator[None]:
    """Where a file cannot be written inside, it is told which and why.

    Args:
        folder: of the training.
        saved: what is to be said of the checkpoints that are there.

    Raises:
        KDError: in place of the error of the system, or of ``torch.save``.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in FULL + CLOSED:
            raise
        raise KDError(f"{_write_error_message(error, folder)}\n{saved()}") from error
    except RuntimeError as error:
        if isinstance(error, KDError) or not WRITER.search(str(error)):
            raise
        raise KDError(f"{_write_error_message(OSError(_errno_of(folder), ''), folder)}\n{saved()}") from error


def _errno_of(folder: Path) -> int:
    """What kept torch from writing, which it does not say."""
    try:
        probe = folder / ".probe"
        probe.write_bytes(b"0" * 2**20)
        probe.unlink()
    except OSError as error:
        return int(error.errno or 0)
    return errno.ENOSPC


def _write_error_message(error: OSError, folder: Path) -> str:
    file = error.filename or folder
    if error.errno in FULL:
        free = shutil.disk_usage(folder).free / 2**20
        return f"{file} cannot be written: the disk or the quota is full ({free:.0f} MiB free). Make room."
    if error.errno == errno.EROFS:
        return f"{file} cannot be written: its file system is read-only now. Have it mounted for writing again."
    return f"{file} cannot be written: {error.strerror}. Give the right to write back: chmod -R u+w '{folder}'"
