"""The package in environments of other versions: ``python -m tests.matrix.run``. Prints a table in Markdown.

Every environment is made anew by ``python -m venv`` and pip in a scratch folder, used once by `tests/matrix/check.py`,
and deleted: a CUDA build of torch takes 6 GB. Ends with 1 where one of them fails. Needs the Pythons (those of pyenv
are found by themselves; others in the PATH as ``python3.12``), 8 GB of disk, a package index, and some minutes each.
"""

import argparse
import glob
import json
import os
import shutil
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path

ROOT = Path(__file__).parents[2]
CHECK = Path(__file__).with_name("check.py")
STEPS = ("install", "discovery", "preprocessing", "training", "prediction")
# Python, and what pip is asked for: each Python once, the oldest torch once, both releases of nnU-Net
ROWS = (
    ("3.10", "torch==2.5.*", "nnunetv2==2.8.0"),
    ("3.10", "torch", "nnunetv2==2.8.1"),
    ("3.11", "torch", "nnunetv2==2.8.1"),
    ("3.12", "torch", "nnunetv2==2.8.0"),
    ("3.13", "torch", "nnunetv2==2.8.1"),
)


def python_of(version: str) -> str:
    """
    Raises:
        SystemExit: where this machine has none.
    """
    root = os.environ.get("PYENV_ROOT", str(Path.home() / ".pyenv"))
    of_pyenv = sorted(glob.glob(f"{root}/versions/{version}.*/bin/python"))
    found = of_pyenv[-1] if of_pyenv else shutil.which(f"python{version}")
    if found is None:
        raise SystemExit(f"There is no Python {version} here: pyenv install {version}")
    return found


def wheel(folder: Path) -> Path:
    """Of this checkout."""
    subprocess.run([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, ROOT], check=True)
    return next(folder.glob("*.whl"))


def try_row(python: str, requirements: tuple[str, ...], package: Path, scratch: Path) -> dict[str, str]:
    """What `tests/matrix/check.py` says of a new environment, or why there is none."""
    venv, work = scratch / "venv", scratch / "work"
    work.mkdir()
    try:
        subprocess.run([python, "-m", "venv", venv], check=True)
        pip = [venv / "bin" / "python", "-m", "pip", "install", "-q", "--no-compile"]
        done = subprocess.run([*pip, str(package), *requirements], capture_output=True, text=True)
        if done.returncode:
            return {"install": done.stderr[-3000:]}
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("nnUNet", "PYTHON"))}
        command = [venv / "bin" / "python", "-W", "ignore", CHECK]
        done = subprocess.run(command, capture_output=True, text=True, cwd=work, env=clean)
        if done.returncode:
            return {"install": done.stderr[-3000:]}
        found: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
        return found
    finally:
        shutil.rmtree(venv, ignore_errors=True)
        shutil.rmtree(work, ignore_errors=True)


def as_row(asked: tuple[str, ...], found: dict[str, str]) -> str:
    versions = [found.get("python", asked[0]), *(found.get(name, "-") for name in ("torch", "nnunetv2", "numpy"))]
    steps = ["ok" if found.get(step) == "ok" else "**fails**" if step in found else "-" for step in STEPS]
    return "| " + " | ".join([*versions, *steps, date.today().isoformat()]) + " |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=int, nargs="+", help="rows of the table, counted from 0")
    parser.add_argument("--scratch", type=Path, help="folder for the environments; default: the temporary one")
    args = parser.parse_args()
    head = ["Python", "torch", "nnunetv2", "numpy", *STEPS, "on"]
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}", flush=True)
    problems = []
    with tempfile.TemporaryDirectory(dir=args.scratch) as folder:
        package = wheel(Path(folder))
        for number, (version, *requirements) in enumerate(ROWS):
            if args.only and number not in args.only:
                continue
            found = try_row(python_of(version), tuple(requirements), package, Path(folder))
            print(as_row((version, *requirements), found), flush=True)
            problems += [f"{version}, {requirements}: {found[step]}" for step in STEPS if found.get(step, "ok") != "ok"]
    for problem in problems:
        print(f"\n{problem}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
