"""Download the files from which ``pip`` installs the runner's requirements on a machine without internet."""

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from packaging.markers import Marker

from nnunetv2_kd.errors import KDError
from nnunetv2_kd.portable.requirements import Pinned, as_text

# the tags that pip accepts, and the values of environment markers
PLATFORMS: dict[str, tuple[list[str], dict[str, str]]] = {
    "linux_x86_64": (
        [f"manylinux_2_{minor}_x86_64" for minor in range(5, 35)] + ["manylinux2014_x86_64"],
        {"sys_platform": "linux", "platform_machine": "x86_64", "platform_system": "Linux"},
    ),
    "linux_aarch64": (
        [f"manylinux_2_{minor}_aarch64" for minor in range(17, 35)] + ["manylinux2014_aarch64"],
        {"sys_platform": "linux", "platform_machine": "aarch64", "platform_system": "Linux"},
    ),
    "win_amd64": (
        ["win_amd64"],
        {"sys_platform": "win32", "platform_machine": "AMD64", "platform_system": "Windows"},
    ),
    "macosx_arm64": (
        [f"macosx_{major}_0_{kind}" for major in range(11, 16) for kind in ("arm64", "universal2")],
        {"sys_platform": "darwin", "platform_machine": "arm64", "platform_system": "Darwin"},
    ),
}


def target_of(asked: Sequence[str]) -> tuple[str, str]:
    """Check the two values of ``--wheels PLATFORM PYTHON``.

    Raises:
        KDError: if there is no such platform or Python.
    """
    platform, python = asked
    if platform not in PLATFORMS:
        raise KDError(f"--wheels knows the platforms {', '.join(PLATFORMS)}; found {platform}.")
    if python not in ("3.10", "3.11", "3.12", "3.13"):
        raise KDError(f"--wheels is for Python 3.10 to 3.13, found {python}.")
    return platform, python


def download_wheels(folder: Path, pinned: Sequence[Pinned], platform: str, python: str) -> None:
    """Let pip download the pinned packages into a folder; pip compares the hashes.

    Raises:
        KDError: if pip fails; contains its message.
    """
    tags, fixed = PLATFORMS[platform]
    environment = fixed | {"python_version": python, "python_full_version": f"{python}.99", "extra": ""}
    # pip would evaluate the markers for the machine on which it runs
    wanted = [entry for entry in pinned if not entry.marker or Marker(entry.marker).evaluate(environment)]
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "requirements.txt"
        file.write_text("".join(_without_marker(entry) for entry in wanted), encoding="utf-8")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
        command += ["--require-hashes", "--python-version", python, "--implementation", "cp", "--dest", str(folder)]
        command += [part for tag in [*tags, "any"] for part in ("--platform", tag)]
        done = subprocess.run([*command, "-r", str(file)], capture_output=True, text=True)
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or [done.stderr.strip()]
        raise KDError(
            f"pip cannot download the wheels for {platform}, Python {python}: {lines[-1]}\nTo continue without them, "
            "leave out --wheels, and install from the internet."
        )


def _without_marker(entry: Pinned) -> str:
    return as_text([entry]).replace(f" ; {entry.marker}", "") if entry.marker else as_text([entry])
