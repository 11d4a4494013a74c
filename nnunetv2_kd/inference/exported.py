"""An exported model's folder, and a predictor of it.

``export.json`` says what is in it; per fold there is ``fold_0/model.onnx``, or ``fold_0/model.xml`` and
``model.bin``; ``plans.json`` and ``dataset.json`` are nnU-Net's own. All that a prediction needs is in these files:
labels, regions, spacing, normalisation, patch size and mirroring axes.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_kd.choices import Precision, Runtime
from nnunetv2_kd.errors import KDError, listing
from nnunetv2_kd.inference.choose import ChosenRuntime, use_sessions
from nnunetv2_kd.inference.device import prediction_threads
from nnunetv2_kd.inference.runtimes import check_runtime
from nnunetv2_kd.inference.sessions import open_session
from nnunetv2_kd.networks import cpu_mode
from nnunetv2_kd.nnunet.files import read_json, sha256

EXPORT_FILE = "export.json"
RUNTIMES: dict[str, Runtime] = {"onnx": "onnx", "openvino": "openvino"}  # by the format's name
COMPUTES_IN: dict[str, Precision] = {"f32": "f32", "bf16": "bf16", "int8": "int8", "fp16": "f32"}


def is_exported(folder: Path) -> bool:
    """Whether a folder holds a model that was exported for a runtime (a stock model folder is none)."""
    return (folder / EXPORT_FILE).is_file() and read_json(folder / EXPORT_FILE).get("format") in RUNTIMES


def exported_folds(folder: Path) -> list[str]:
    """The folds in an exported folder, by name."""
    return list(read_json(folder / EXPORT_FILE)["folds"])


def load_exported(predictor: nnUNetPredictor, folder: Path, folds: Sequence[int | str]) -> ChosenRuntime:
    """Initialize a predictor with an exported model.

    Args:
        predictor: on a CPU.
        folder: the exported folder.
        folds: those that predict together.

    Raises:
        KDError: where a file is missing or has changed since the export, or the runtime is not installed.
    """
    about = read_json(folder / EXPORT_FILE)
    runtime, precision = RUNTIMES[about["format"]], COMPUTES_IN[about["precision"]]
    if predictor.device.type != "cpu":
        raise KDError(f"{folder} is exported for a CPU ({about['format']}). Add: -device cpu")
    check_runtime(runtime, "f32" if precision == "int8" else precision, "cpu")
    if precision == "bf16":
        cpu_mode.check_here("bfloat16")
    check_files(folder, about)
    lacking = [str(fold) for fold in folds if str(fold) not in about["folds"]]
    if lacking:
        raise KDError(
            f"{folder} holds no fold {' and '.join(lacking)}. Name what it holds: -f {' '.join(about['folds'])}"
        )
    threads = prediction_threads()
    sessions = [open_session(folder / about["folds"][str(fold)], runtime, precision, threads) for fold in folds]
    plans = PlansManager(read_json(folder / "plans.json"))
    axes = about["mirroring_axes"]
    predictor.manual_initialization(
        None,
        plans,
        plans.get_configuration(about["configuration"]),
        None,
        read_json(folder / "dataset.json"),
        about["trainer"],
        tuple(axes) if axes is not None else None,
    )
    use_sessions(predictor, sessions)
    return ChosenRuntime(runtime, precision)


def check_files(folder: Path, about: dict[str, Any]) -> None:
    """Every file of the export is there, as it was written.

    Raises:
        KDError: names those that are not.
    """
    problems = []
    for name, digest in about["files"].items():
        if not (folder / name).is_file():
            problems.append(f"{name} is missing")
        elif sha256(folder / name) != digest:
            problems.append(f"{name} is not the file that was exported (its SHA-256 differs): cut short, or replaced")
    if problems:
        raise KDError(listing(f"{folder} is damaged. Copy it again, or export it again:", problems))
