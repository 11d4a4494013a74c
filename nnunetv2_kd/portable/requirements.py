"""The packages that the runner needs, pinned to versions, with the hashes of all of their files: a
part of ``requirements.lock``."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

LOCK = Path(__file__).parent / "files" / "requirements.lock"
BASE = ("numpy", "scipy", "tqdm")


@dataclass(frozen=True)
class Pinned:
    """One version of one package.

    Attributes:
        name: in lower case.
        marker: the environments that need it, such as ``python_full_version < '3.11'``; "": all.
        text: the lines of the lock.
        needed_by: names of packages.
    """

    name: str
    marker: str
    text: str
    needed_by: frozenset[str]


def read_lock(file: Path = LOCK) -> list[Pinned]:
    """All pinned packages."""
    found = []
    for block in re.split(r"\n(?=[a-z])", re.sub(r"(?m)^#.*\n", "", file.read_text(encoding="utf-8")).strip()):
        lines = block.splitlines()
        head = lines[0].removesuffix("\\").strip()
        needed_by = re.findall(r"(?m)^    #(?: via|  ) +([\w.-]+)$", block)
        text = "\n".join(line for line in lines if not line.lstrip().startswith("#"))
        found.append(Pinned(head.split("==")[0], head.partition(" ; ")[2], text, frozenset(needed_by)))
    return found


def needed_packages(packages: Iterable[str]) -> list[Pinned]:
    """Some packages, and all packages that they need."""
    lock, names = read_lock(), {package.lower() for package in packages}
    while True:
        more = {entry.name for entry in lock if entry.needed_by & names} | names
        if more == names:
            return [entry for entry in lock if entry.name in names]
        names = more


def as_text(pinned: Iterable[Pinned]) -> str:
    """The content of a file for ``pip install -r``."""
    return "".join(f"{entry.text}\n" for entry in pinned)
