"""Where memory runs out: what to change, and the line that goes on from the last checkpoint."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from nnunetv2_kd.errors import KDError
from nnunetv2_kd.nnunet.datasets import dataset_id

MEMORY = re.compile(r"out of memory|not enough memory|can't allocate memory|CUBLAS_STATUS_ALLOC_FAILED", re.IGNORECASE)


@contextmanager
def told_without_memory(who: str, trainer: Any) -> Iterator[None]:
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
        raise KDError(_without_memory(who, trainer)) from error


def _without_memory(who: str, trainer: Any) -> str:
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
