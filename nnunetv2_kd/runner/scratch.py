"""Large arrays, in memory or in a file without a name, of which only the parts in use take memory."""

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
    """Arrays of one shape, initially 0, accessed one at a time.

    Args:
        count: number of arrays.
        shape: of each.
        dtype: of their values.
        limit: total size in bytes up to which they are kept in memory.
        folder: of the file in which larger ones are kept. The file has no name, and disappears with the process.

    Raises:
        RunnerError: if that folder does not have enough space.
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
        self._file = tempfile.TemporaryFile(dir=folder, prefix=".scratch_")  # noqa: SIM115 - open until `close`
        _reserve(self._file, count * self._bytes, folder)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: int) -> Array:
        """Array number ``number``, to read and to change. Do not keep it: what is mapped takes memory."""
        if self._memory is not None:
            found: Array = self._memory[number]
            return found
        return np.memmap(self._file, self.dtype, "r+", number * self._bytes, self.shape)

    def close(self) -> None:
        """Release memory and disk space."""
        self._memory = None
        if self._file is not None:
            self._file.close()


def _reserve(file: Any, size: int, folder: Path) -> None:
    """Reserve the space, because writing to a mapped file on a full disk would kill the process."""
    message = f"{size / 1e6:.0f} MB of scratch space are needed in {folder}"
    mend = "Free some space there, name another folder (--scratch FOLDER), or keep more in memory (--memory GB)."
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
