"""If memory runs out, say what to change, and how to continue from the last checkpoint."""

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
def explain_out_of_memory(who: str, trainer: Any) -> Iterator[None]:
    """If memory runs out within this context, say whose step it was, and what would need less.

    Args:
        who: ``the teacher`` or ``the student``.
        trainer: one of ours.

    Raises:
        KDError: instead of torch's error.
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
        f"{where} does not have enough memory for a step of {who}, at {trainer.batch_size} patches of {patch} voxels.",
        "End other programs that use it, or use less:",
    ]
    data = Path(trainer.preprocessed_dataset_folder)
    if who == "the teacher" and trainer.names_teacher and trainer.options.stored_teacher is None:
        line = f"nnUNetv2_kd store -d {dataset_id(data.parent.name)} -c {trainer.configuration_name} -f {trainer.fold}"
        lines.append(f"  - keep the teacher out of memory: {line}, then train with stored_teacher: fold_{trainer.fold}")
    if who == "the student":
        lines.append("  - use a smaller student: student: {width: 0.25} in the options")
    lines.append(
        f"  - use fewer patches: a smaller batch_size for {trainer.configuration_name} in plans with another name, -p"
    )
    return "\n".join([*lines, trainer.about_saved()])
