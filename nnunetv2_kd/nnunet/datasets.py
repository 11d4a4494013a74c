"""nnU-Net's datasets: their names, and where their data, ground truth and images are on this machine."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw, nnUNet_results
from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name

from nnunetv2_kd.errors import KDError, listing
from nnunetv2_kd.nnunet.files import read_json
from nnunetv2_kd.nnunet.paths import problem_of

DEFAULT_PLANS = "nnUNetPlans"
DATASETS = "Dataset[0-9][0-9][0-9]_*"


def dataset_id(dataset_name: str) -> str:
    """The id as users type it: ``4`` for ``Dataset004_Hippocampus``.

    >>> dataset_id("Dataset004_Hippocampus")
    '4'
    """
    return str(int(dataset_name[len("Dataset") :].split("_")[0]))


def preprocessed_folder(dataset: str) -> Path:
    """Folder of a dataset under ``nnUNet_preprocessed``.

    Args:
        dataset: ``4`` or ``Dataset004_Hippocampus``.

    Raises:
        KDError: if the variable is not set or the dataset does not exist.
    """
    name = _dataset_name(dataset, nnUNet_preprocessed)
    folder = Path(nnUNet_preprocessed) / name
    if not folder.is_dir():
        raise KDError(f"{folder} does not exist. Make it with: nnUNetv2_plan_and_preprocess -d {dataset_id(name)}")
    return folder


def raw_folder(dataset: str) -> Path:
    """Folder of a dataset under ``nnUNet_raw``.

    Args:
        dataset: ``4`` or ``Dataset004_Hippocampus``.

    Raises:
        KDError: if the variable is not set or the dataset does not exist.
    """
    folder = Path(nnUNet_raw) / _dataset_name(dataset, nnUNet_raw)
    if not (folder / "dataset.json").is_file():
        present = ", ".join(sorted(found.name for found in Path(nnUNet_raw).glob(DATASETS))) or "no dataset"
        raise KDError(f"{folder / 'dataset.json'} does not exist; {nnUNet_raw} holds {present}.")
    return folder


def trained_dataset(dataset: str) -> str:
    """The full name of a dataset that has a folder under ``nnUNet_results``.

    Args:
        dataset: ``4`` or ``Dataset004_Hippocampus``.

    Raises:
        KDError: if the variable is not set or its folder has no such dataset.
    """
    name = _dataset_name(dataset, nnUNet_results)
    if not (Path(nnUNet_results) / name).is_dir():
        present = sorted(folder.name for folder in Path(nnUNet_results).glob(DATASETS))
        found = f"it holds {', '.join(present)}" if present else "it holds no dataset"
        raise KDError(
            f"No model of {name} is trained: {nnUNet_results} has no such folder; {found}. {how_to_train(name)}"
        )
    return name


def known_dataset(dataset: str) -> str:
    """The full name of a dataset that has a folder under any of nnU-Net's paths.

    Args:
        dataset: ``4`` or ``Dataset004_Hippocampus``.

    Raises:
        KDError: if there is none.
    """
    set_ones = [place for place in (nnUNet_results, nnUNet_preprocessed) if place.is_set()]
    return _dataset_name(dataset, set_ones[0] if set_ones else nnUNet_results)


def how_to_train(dataset_name: str) -> str:
    """The command that trains a first model of a dataset, with a configuration that its plans have; if it is not
    preprocessed, the command that does this."""
    number = dataset_id(dataset_name)
    folder = Path(nnUNet_preprocessed) / dataset_name if nnUNet_preprocessed.is_set() else None
    files = sorted(folder.glob("*Plans.json")) if folder is not None else []
    default = [file for file in files if file.stem == DEFAULT_PLANS]
    for file in [*default, *files]:
        configurations = _configurations(file)
        usable = [name for name in ("3d_fullres", "2d", *configurations) if name in configurations]
        if usable:
            plans = "" if file.stem == DEFAULT_PLANS else f" -p {file.stem}"
            return f"Train one: nnUNetv2_train {number} {usable[0]} 0{plans}{device_flag()}"
    return f"It is not preprocessed yet: nnUNetv2_plan_and_preprocess -d {number}"


def _configurations(plans_file: Path) -> dict[str, Any]:
    """The configurations of a plans file; None if it cannot be read, because this is only used for a suggestion."""
    plans = read_json(plans_file)
    found = plans.get("configurations") if isinstance(plans, dict) else None
    return found if isinstance(found, dict) else {}


def device_flag() -> str:
    """The device flag that commands need on this machine; empty if it has a CUDA device."""
    return "" if torch.cuda.is_available() else " -device cpu"


def ground_truth_folder(dataset_name: str) -> Path | None:
    """The folder with the ground truth of a dataset's training cases; None if it is not on this machine."""
    places = []
    if nnUNet_preprocessed.is_set():
        places.append(Path(nnUNet_preprocessed) / dataset_name / "gt_segmentations")
    if nnUNet_raw.is_set():
        places.append(Path(nnUNet_raw) / dataset_name / "labelsTr")
    return next((place for place in places if place.is_dir()), None)


def training_images(dataset_name: str, case: str, ending: str) -> list[str]:
    """The channel files of a training case; empty if they are not on this machine."""
    if not nnUNet_raw.is_set():
        return []
    folder = Path(nnUNet_raw) / dataset_name / "imagesTr"
    length = len(case) + 5 + len(ending)
    return sorted(str(f) for f in folder.glob("*" + ending) if len(f.name) == length and f.name.startswith(f"{case}_"))


def raw_images(dataset_name: str, dataset_json: Mapping[str, Any], cases: Sequence[str]) -> dict[str, list[str]]:
    """The channel files of training cases, by case.

    Args:
        dataset_name: the full name.
        dataset_json: its dataset.json, which may say where the files are.

    Raises:
        KDError: if the raw data are not on this machine; lists what is missing.
    """
    if not nnUNet_raw.is_set():
        raise KDError(
            "The environment variable nnUNet_raw is not set, but the raw images are needed. Set it: export "
            "nnUNet_raw=/path/to/nnUNet_raw"
        )
    folder, named = Path(nnUNet_raw) / dataset_name, dataset_json.get("dataset", {})
    found = {
        case: [str(folder / os.path.expandvars(file)) for file in named[case]["images"]]
        if case in named
        else training_images(dataset_name, case, str(dataset_json["file_ending"]))
        for case in cases
    }
    missing = [case for case, files in found.items() if not files or not all(Path(file).is_file() for file in files)]
    if missing:
        shown = missing[:5] + ([f"and {len(missing) - 5} more"] if len(missing) > 5 else [])
        raise KDError(listing(f"The raw images of {len(missing)} cases are not in {folder / 'imagesTr'}:", shown))
    return found


def _dataset_name(dataset: str, variable: object) -> str:
    """The full name.

    Args:
        variable: the nnU-Net path in which the dataset will be looked up.
    """
    name = variable.env_var_name  # type: ignore[attr-defined]
    if problem := problem_of(name):
        raise KDError(problem)
    if not variable.is_set():  # type: ignore[attr-defined]
        raise KDError(f"The environment variable {name} is not set. Set it: export {name}=/path/to/{name}")
    try:
        return str(maybe_convert_to_dataset_name(int(dataset) if dataset.isdigit() else dataset))
    except (RuntimeError, ValueError) as error:
        raise KDError(f"There is no dataset {dataset}: {error}") from error
