"""Only one training of a fold at a time: a second one is refused, even on another machine."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch.distributed as dist

from nnunetv2_kd.errors import KDError
from nnunetv2_kd.nnunet.locks import LOCK_OF_TRAINING, hold_lock, holders
from nnunetv2_kd.trainers.start import Start


def check_not_training(fold: Path) -> None:
    """Check that no other process trains or validates this fold, before anything is created.

    Args:
        fold: its output folder, which may not exist yet.

    Raises:
        KDError: if another process does.
    """
    if dist.is_available() and dist.is_initialized() and dist.get_rank() != 0:
        return  # the first worker holds the lock
    if others := holders(fold / LOCK_OF_TRAINING):
        raise KDError(_taken_message(fold, others))


@contextmanager
def hold_training_lock(fold: Path, rank: int, start: Start) -> Iterator[None]:
    """Within this context, no other process trains or validates this fold.

    Args:
        fold: its output folder.
        rank: of this worker; only the first one holds the lock.
        start: of the training; it undoes nothing if another training was first.

    Raises:
        KDError: if another process does.
    """
    if rank != 0:
        yield
        return
    with hold_lock(fold / LOCK_OF_TRAINING) as others:
        if others:
            start.keep()
            raise KDError(_taken_message(fold, others))
        yield


def _taken_message(fold: Path, others: str) -> str:
    return (
        f"Another process trains or validates {fold}: {others} (process id on host). Two would overwrite each other's "
        "checkpoints. Wait until it has ended, or end it and continue with --c. If there is no such process: "
        f"rm '{fold / LOCK_OF_TRAINING}'"
    )
