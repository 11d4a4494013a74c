"""One training of a fold at a time: a second one is refused, whichever machine it is started on."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch.distributed as dist

from nnunetv2_kd.errors import KDError
from nnunetv2_kd.nnunet.locks import LOCK_OF_TRAINING, holders, holding
from nnunetv2_kd.trainers.start import Start


def refuse_second(fold: Path) -> None:
    """Before anything of a training is made.

    Args:
        fold: its output folder, which need not be there.

    Raises:
        KDError: where another process trains or validates this fold.
    """
    if dist.is_available() and dist.is_initialized() and dist.get_rank() != 0:
        return  # the first of the workers holds it
    if others := holders(fold / LOCK_OF_TRAINING):
        raise KDError(_taken(fold, others))


@contextmanager
def alone_in(fold: Path, rank: int, start: Start) -> Iterator[None]:
    """Inside, no other process trains or validates this fold.

    Args:
        fold: its output folder.
        rank: of this worker; only the first holds the lock.
        start: of the training, which takes nothing back where another one has come first.

    Raises:
        KDError: where another process does.
    """
    if rank != 0:
        yield
        return
    with holding(fold / LOCK_OF_TRAINING) as others:
        if others:
            start.keep()
            raise KDError(_taken(fold, others))
        yield


def _taken(fold: Path, others: str) -> str:
    return (
        f"Another process trains or validates {fold}: {others} (process id on host). Two would write over each other's "
        "checkpoints. Wait until it has ended, or end it and go on with --c. If there is no such process: "
        f"rm '{fold / LOCK_OF_TRAINING}'"
    )
