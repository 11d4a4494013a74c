"""A file system of a few megabytes, for tests of what happens when it is full."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    """The folder is a file system of its own inside, with what it held before. Skips the test where this process may
    not mount one."""
    if sys.platform != "linux" or shutil.which("mount") is None or os.geteuid() != 0:
        pytest.skip("only root may mount a file system")
    folder.mkdir(parents=True, exist_ok=True)
    held = folder.with_name(f"{folder.name}_before")
    shutil.copytree(folder, held)
    options = f"size={megabytes}m"
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"nothing can be mounted here: {done.stderr.strip()}")
    try:
        shutil.copytree(held, folder, dirs_exist_ok=True)
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)  # tracebacks can hold files open


def fill(folder: Path, leave: int = 0) -> Path:
    """Fill the file system of a folder but for so many bytes, with one file, which is returned."""
    file = folder / "filling"
    size = shutil.disk_usage(folder).free - leave
    with file.open("wb") as stream:
        stream.write(b"0" * max(0, size))
    return file
