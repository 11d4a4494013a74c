"""The folder of an exported model, and a predictor for it.

``export.json`` describes the folder. Each fold has a ``fold_0/model.onnx``, or ``fold_0/model.xml`` and ``model.bin``.
``plans.json`` and ``dataset.json`` are nnU-Net's own. These files hold everything that a prediction needs: labels,
regions, spacing, normalisation, patch size and mirroring axes.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from nnunetv2_kd.choices import Precision, Runtime
from nnunetv2_kd.errors import KDError, listing
from nnunetv2_kd.inference.choose import ChosenRuntime, use_sessions
from nnunetv2_kd.inference.device import prediction_threads
from nnunetv2_kd.inference.runtimes import check_runtime
from nnunetv2_kd.inference.sessions import open_session
from nnunetv2_kd.networks import cpu_mode
from nnunetv2_kd.networks.build import configuration_of
from nnunetv2_kd.nnunet.files import is_inside, read_json, sha256
from nnunetv2_kd.nnunet.model_files import printable, read_model_files, refuse_unexpected_content

EXPORT_FILE = "export.json"
AGAIN = "Copy the exported model again, or export it again."
RUNTIMES: dict[str, Runtime] = {"onnx": "onnx", "openvino": "openvino"}  # keyed by the format's name
COMPUTES_IN: dict[str, Precision] = {"f32": "f32", "bf16": "bf16", "int8": "int8", "fp16": "f32"}


def is_exported(folder: Path) -> bool:
    """Whether a folder holds a model that was exported for a runtime; not true of a stock model folder."""
    if not (folder / EXPORT_FILE).is_file():
        return False
    about = read_json(folder / EXPORT_FILE, mend=AGAIN)
    return not isinstance(about, dict) or about.get("format") != "nnunet"  # a stock folder beside its zip


def exported_folds(folder: Path) -> list[str]:
    """The folds in an exported folder, by name."""
    return list(read_export(folder)["folds"])


def read_export(folder: Path) -> dict[str, Any]:
    """Read ``export.json``, and check that every file that it names is in the folder.

    Raises:
        KDError: lists what is not as an export writes it.
    """
    about = read_json(folder / EXPORT_FILE, mend=AGAIN)
    problems = list(_export_problems(folder, about))
    if problems:
        raise KDError(
            f"{listing(f'{folder / EXPORT_FILE} is not as nnUNetv2_kd export writes it:', problems[:10])}\n{AGAIN}"
        )
    found: dict[str, Any] = about
    return found


def _export_problems(folder: Path, about: Any) -> Iterator[str]:
    if not isinstance(about, dict):
        yield f"expected keys with values, found {type(about).__name__}"
        return
    for key, known in (("format", RUNTIMES), ("precision", COMPUTES_IN)):
        if not isinstance(about.get(key), str) or about[key] not in known:
            yield f"{key}: expected one of {', '.join(known)}, found {printable(about.get(key))}"
    for key in ("configuration", "trainer"):
        if not isinstance(about.get(key), str):
            yield f"{key}: expected a name, found {printable(about.get(key))}"
    axes = about.get("mirroring_axes")
    if axes is not None and not (isinstance(axes, list) and all(type(axis) is int and 0 <= axis <= 2 for axis in axes)):
        yield f"mirroring_axes: expected axes, found {printable(axes)}"
    folds, files = about.get("folds"), about.get("files")
    if not isinstance(folds, dict) or not folds or not isinstance(files, dict):
        yield "folds, files: expected names with files"
        return
    yield from (
        f"files: {printable(name)} is not a file in this folder" for name in files if not is_inside(folder, name)
    )
    yield from (f"folds: {printable(name)} is not among files" for name in folds.values() if not _is_named(name, files))
    for name in ("plans.json", "dataset.json"):
        if name not in files:
            yield f"files: {name} is missing"


def _is_named(name: Any, files: dict[str, Any]) -> bool:
    return isinstance(name, str) and name in files


def load_exported(predictor: nnUNetPredictor, folder: Path, folds: Sequence[int | str]) -> ChosenRuntime:
    """Initialize a predictor with an exported model.

    Args:
        predictor: on a CPU.
        folder: the exported folder.
        folds: the folds to use; several predict as an ensemble.

    Raises:
        KDError: if a file is missing or has changed since the export, or the runtime is not installed.
    """
    about = read_export(folder)
    runtime, precision = RUNTIMES[about["format"]], COMPUTES_IN[about["precision"]]
    if predictor.device.type != "cpu":
        raise KDError(f"{folder} was exported for a CPU ({about['format']}). Add: -device cpu")
    check_runtime(runtime, "f32" if precision == "int8" else precision, "cpu")
    if precision == "bf16":
        cpu_mode.check_here("bfloat16")
    check_files(folder, about)
    lacking = [str(fold) for fold in folds if str(fold) not in about["folds"]]
    if lacking:
        raise KDError(f"{folder} has no fold {' and '.join(lacking)}. Its folds: -f {' '.join(about['folds'])}")
    threads = prediction_threads()
    with refuse_unexpected_content(f"the network in {folder}", AGAIN):
        sessions = [open_session(folder / about["folds"][str(fold)], runtime, precision, threads) for fold in folds]
    own_plans, dataset_json = read_model_files(folder)
    plans, configuration = configuration_of(own_plans, about["configuration"])
    axes = about["mirroring_axes"]
    predictor.manual_initialization(
        None,
        plans,
        configuration,
        None,
        dataset_json,
        about["trainer"],
        tuple(axes) if axes is not None else None,
    )
    use_sessions(predictor, sessions)
    return ChosenRuntime(runtime, precision)


def check_files(folder: Path, about: dict[str, Any]) -> None:
    """Check that every file of the export exists and is unchanged, and that there is no other network.

    Raises:
        KDError: names the files that are missing or changed.
    """
    problems = []
    for name, digest in about["files"].items():
        if not (folder / name).is_file():
            problems.append(f"{name} is missing")
        elif sha256(folder / name) != digest:
            problems.append(f"{name} was changed since the export (its SHA-256 differs): truncated or replaced")
    if problems:
        raise KDError(listing(f"{folder} is damaged. Copy it again, or export it again:", problems))
