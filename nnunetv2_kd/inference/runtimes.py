"""The runtimes for a network on a CPU (torch, OpenVINO, ONNX Runtime) and their precisions. This module imports
none of them."""

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

from nnunetv2_kd.choices import RUNTIMES, Precision, Runtime, RuntimeChoice
from nnunetv2_kd.errors import KDError, listing

PRECISIONS_OF: dict[Runtime, tuple[Precision, ...]] = {
    "torch": ("f32", "bf16"),
    "openvino": ("f32", "bf16", "int8"),
    "onnx": ("f32",),  # its int8 was slower than its f32 on every 3D network that was tried
}
NAMES: dict[Runtime, str] = {"torch": "PyTorch", "openvino": "OpenVINO", "onnx": "ONNX Runtime"}
# OpenVINO reads networks that torch has written as ONNX
PACKAGES: dict[Runtime, tuple[str, ...]] = {
    "torch": ("torch",),
    "openvino": ("openvino", "onnx"),
    "onnx": ("onnxruntime", "onnx"),
}
INSTALL = "pip install 'nnunetv2_kd[cpu]'"
CALIBRATION_PACKAGE = "nncf"


def package_version(package: str) -> str | None:
    """A package's version, such as ``2026.4.1``; None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def is_installed(runtime: Runtime, precision: Precision = "f32") -> bool:
    """Whether all packages that a runtime needs for a precision are installed."""
    return not _missing(runtime, precision)


def runtimes_for(precision: Precision) -> list[Runtime]:
    """The installed runtimes that can compute in a precision."""
    return [r for r in RUNTIMES if precision in PRECISIONS_OF[r] and is_installed(r, precision)]


def check_runtime(choice: RuntimeChoice, precision: Precision, device: str) -> None:
    """Check that a runtime and precision can be used on this machine.

    Raises:
        KDError: if they cannot; says what to install or to choose.
    """
    if device != "cpu":
        if choice not in ("measure", "torch") or precision != "f32":
            raise KDError(
                f"--runtime {choice} --precision {precision} is for -device cpu, but found -device {device}, which "
                "always uses nnU-Net's PyTorch. Leave both out, or add: -device cpu"
            )
        return
    if choice == "measure":
        if not runtimes_for(precision):
            able = [NAMES[r] for r in RUNTIMES if precision in PRECISIONS_OF[r]]
            raise KDError(f"--precision {precision} needs {' or '.join(able)}, which is not installed. Type: {INSTALL}")
        return
    if precision not in PRECISIONS_OF[choice]:
        able = [f"--runtime {r}" for r in RUNTIMES if precision in PRECISIONS_OF[r]]
        raise KDError(f"--runtime {choice} has no --precision {precision}. Choose {' or '.join(able)}.")
    missing = _missing(choice, precision)
    if missing:
        raise KDError(listing(f"--runtime {choice} is not installed. Type: {INSTALL}\nMissing:", missing))


def combinations(
    runtimes: Sequence[RuntimeChoice], precisions: Sequence[Precision]
) -> list[tuple[RuntimeChoice, Precision]]:
    """All pairs of a runtime and a precision that it supports, in the given order.

    Raises:
        KDError: if a runtime supports none of the precisions, or a precision none of the runtimes.
    """
    able = {r: [p for p in dict.fromkeys(precisions) if r == "measure" or p in PRECISIONS_OF[r]] for r in runtimes}
    for runtime, found in able.items():
        if not found and runtime != "measure":
            asked, has = (" or ".join(names) for names in (precisions, PRECISIONS_OF[runtime]))
            raise KDError(f"--runtime {runtime} has no --precision {asked}. Add: --precision {has}")
    for precision in precisions:
        if able and not any(precision in found for found in able.values()):
            owners = [r for r in RUNTIMES if precision in PRECISIONS_OF[r]]
            raise KDError(f"None of the given runtimes has --precision {precision}. Add: --runtime {owners[0]}")
    return [(runtime, precision) for runtime, found in able.items() for precision in found]


def _missing(runtime: Runtime, precision: Precision) -> Sequence[str]:
    needed = PACKAGES[runtime] + ((CALIBRATION_PACKAGE,) if precision == "int8" and runtime == "openvino" else ())
    return [package for package in needed if package_version(package) is None]
