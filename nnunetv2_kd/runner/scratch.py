"""Large arrays: in memory, or in a file without a name, of which only what is looked at takes memory."""

import os
import shutil
import tempfile
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from .errors import RunnerError

Array = NDArray[Any]


class Stack:
    """Arrays of one shape, zero at first, taken one by one.

    Args:
        count: how many.
        shape: of each.
        dtype: of their values.
        limit: bytes up to which all of them are kept in memory.
        folder: of the file in which they are kept otherwise. It has no name, and is gone with the process.

    Raises:
        RunnerError: where that folder has no room for them.
    """

    def __init__(self, count: int, shape: Sequence[int], dtype: DTypeLike, limit: float, folder: Path) -> None:
        self.shape, self.dtype = tuple(int(size) for size in shape), np.dtype(dtype)
        self._count = count
        self._bytes = prod(self.shape) * self.dtype.itemsize
        self._file: Any = None
        self._memory: Array | None = None
        if count * self._bytes <= limit:
            self._memory = np.zeros((count, *self.shape), dtype=self.dtype)
            return
        self._file = tempfile.TemporaryFile(dir=folder, prefix=".scratch_")  # noqa: SIM115 - until it is closed
        _reserve(self._file, count * self._bytes, folder)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: int) -> Array:
        """Array number ``number``, to read and to change. It should not be kept: what is mapped takes memory."""
        if self._memory is not None:
            found: Array = self._memory[number]
            return found
        return np.memmap(self._file, self.dtype, "r+", number * self._bytes, self.shape)

    def close(self) -> None:
        """Give memory and disk back."""
        self._memory = None
        if self._file is not None:
            self._file.close()


def _reserve(file: Any, size: int, folder: Path) -> None:
    """Writing to a mapped file on a full disk would end the process."""
    message = f"{size / 1e6:.0f} MB of scratch space are needed in {folder}"
    mend = "Make room there, or name another folder: --scratch FOLDER, or keep more in memory: --memory GB"
    free = shutil.disk_usage(folder).free
    if free < size:
        raise RunnerError(f"{message}, found {free / 1e6:.0f} MB. {mend}")
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            file.truncate(size)
    except OSError as error:
        raise RunnerError(f"{message}: {error.strerror or error}. {mend}") from error
