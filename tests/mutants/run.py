"""Change one line of the package at a time and see whether the tests notice: mutation testing by hand-picked mutants.

    python tests/mutants/run.py                 # all of mutants.yaml; lists those that survive, and exits with 1
    python tests/mutants/run.py --only region   # those whose name has this in it

Each mutant is made in a copy of the package and the tests, and the tests that it names have to fail there.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[2]
MUTANTS = Path(__file__).parent / "mutants.yaml"
COPIED = ("nnunetv2_kd", "tests", "configs", "docs", "workflow", "pyproject.toml")


def mutate(folder: Path, mutant: dict[str, Any]) -> None:
    """Make the change.

    Raises:
        ValueError: where the text that is to be replaced is not there exactly once.
    """
    file = folder / "nnunetv2_kd" / mutant["file"]
    text = file.read_text()
    found = text.count(mutant["find"])
    if found != 1:
        raise ValueError(f"{mutant['name']}: the text is {found} times in {mutant['file']}, expected once")
    file.write_text(text.replace(mutant["find"], mutant["replace"]))


def survives(mutant: dict[str, Any]) -> bool:
    """Whether the tests pass all the same."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in COPIED:
            copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copyfile
            copy(ROOT / part, folder / part)
        mutate(folder, mutant)
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *mutant["tests"]]
        environment = os.environ | {"PYTHONPATH": str(folder), "NUMBA_CACHE_DIR": str(folder / "numba")}
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode not in (0, 1):
        raise RuntimeError(f"{mutant['name']}: the tests did not run:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.returncode == 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="part of a mutant's name")
    args = parser.parse_args()
    mutants = [mutant for mutant in yaml.safe_load(MUTANTS.read_text()) if args.only in mutant["name"]]
    table = Table("mutant", "file", "seconds", "")
    survivors = 0
    for mutant in mutants:
        started = time.perf_counter()
        alive = survives(mutant)
        survivors += alive
        result = "SURVIVES" if alive else "found"
        print(f"{mutant['name']}: {result}", flush=True)
        table.add_row(mutant["name"], mutant["file"], f"{time.perf_counter() - started:.0f}", result)
    Console(width=140).print(table)
    print(f"{len(mutants)} mutants, {survivors} survive.")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
