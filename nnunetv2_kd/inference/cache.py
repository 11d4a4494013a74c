"""A cache of converted networks on disk, so that each model is converted only once."""

import atexit
import contextlib
import functools
import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from nnunetv2_kd.nnunet.files import sha256, why_not_writable

VARIABLE = "nnUNet_kd_cache"
ABOUT = "about.json"
UNFINISHED = re.compile(r"[0-9a-f]{32}\.\w+")
DAY = 24 * 3600.0


def cache_folder() -> Path:
    """The folder that the environment variable ``nnUNet_kd_cache`` names, or else one in the user's cache. If that
    cannot be written to, a temporary folder that is deleted with this process."""
    named = os.environ.get(VARIABLE)
    users = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = Path(named).expanduser() if named else users / "nnunetv2_kd"
    return _temporary_folder() if why_not_writable(folder) else folder


@functools.cache
def _temporary_folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="nnunetv2_kd_"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def get_or_make(key: Mapping[str, Any], make: Callable[[Path], Any]) -> Path:
    """A folder of files that are made only once.

    The folder is made under a temporary name and then renamed, so a killed process leaves nothing that looks finished.
    If two processes make the same folder, the first one wins. Files that have changed since are made again.

    Args:
        key: all plain values that the content depends on.
        make: writes the files into the folder that it is given.
    """
    root = cache_folder()
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
    entry = root / name
    if _is_complete(entry):
        return entry
    _remove_unfinished(root)
    unfinished = Path(tempfile.mkdtemp(prefix=f"{name}.", dir=root))
    try:
        make(unfinished)
        content = {"key": key, "files": {file.name: sha256(file) for file in sorted(unfinished.iterdir())}}
        (unfinished / ABOUT).write_text(json.dumps(content, indent=2) + "\n")
        return _move(unfinished, entry)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _remove_unfinished(root: Path) -> None:
    """Remove what killed processes have left behind. Nothing takes a day to make, so older folders are leftovers."""
    for folder in root.glob("*.*"):
        if not UNFINISHED.fullmatch(folder.name):  # a user may keep other things here
            continue
        with contextlib.suppress(OSError):  # another process was first
            if folder.stat().st_mtime < time.time() - DAY:
                shutil.rmtree(folder, ignore_errors=True)


def _move(made: Path, entry: Path) -> Path:
    """Move a finished folder into place, replacing a damaged one."""
    for _ in range(2):
        try:
            os.rename(made, entry)
        except OSError:  # another process was first, or the existing folder is damaged
            if _is_complete(entry):
                return entry
            shutil.rmtree(entry, ignore_errors=True)
        else:
            return entry
    raise OSError(f"{entry} can neither be read nor replaced")


def _is_complete(entry: Path) -> bool:
    try:
        files: dict[str, str] = json.loads((entry / ABOUT).read_text())["files"]
        return all(sha256(entry / name) == digest for name, digest in files.items())
    except (OSError, ValueError, KeyError):
        return False
