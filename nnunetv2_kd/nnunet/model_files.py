"""Read plans.json and dataset.json from any source, and check that they have nnU-Net's form before they are used."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import nnunetv2
from nnunetv2.utilities.find_class_by_name import recursive_find_python_class

from nnunetv2_kd.errors import KDError, listing
from nnunetv2_kd.nnunet.files import read_json

MEND = "Copy the model's folder again; plans.json and dataset.json must be those that it was trained with."
# keys of plans that name one of nnU-Net's classes, and the folder in which nnU-Net looks for it
OF_PLANS = {"image_reader_writer": "imageio", "label_manager": "utilities/label_handling"}
OF_CONFIGURATIONS = {
    "preprocessor_name": "preprocessing",
    "resampling_fn_data": "preprocessing/resampling",
    "resampling_fn_seg": "preprocessing/resampling",
    "resampling_fn_probabilities": "preprocessing/resampling",
}
NORMALIZATION = "preprocessing/normalization"
SHOWN = 80


@contextmanager
def refuse_unexpected_content(what: str, mend: str = MEND) -> Iterator[None]:
    """Turn any error that nnU-Net or torch raise on a file that they did not write into a KDError.

    Args:
        what: the file, for the message.
        mend: what the user can do.

    Raises:
        KDError: with the reason in one line.
    """
    try:
        yield
    except KDError:
        raise
    except Exception as error:  # any error, depending on the content
        lines = str(error).strip().splitlines()
        reason = f"{type(error).__name__}: {lines[0][:200] if lines else 'no reason given'}"
        raise KDError(f"{what} cannot be used, because it is not as nnU-Net writes it ({reason}). {mend}") from error


def read_model_files(folder: Path, whole_path: bool = True) -> tuple[dict[str, Any], dict[str, Any]]:
    """Plans and dataset.json of a model folder.

    Args:
        whole_path: give full paths in error messages; otherwise only the files' names, if the message names the folder.

    Raises:
        KDError: if one cannot be read or is not in nnU-Net's form; lists what is wrong.
    """
    return (
        _read_checked(folder / "plans.json", plans_problems, whole_path),
        _read_checked(folder / "dataset.json", dataset_problems, whole_path),
    )


def read_plans_file(file: Path) -> dict[str, Any]:
    """Read plans.

    Raises:
        KDError: see `read_model_files`.
    """
    plans: dict[str, Any] = _read_checked(file, plans_problems)
    return plans


def read_dataset_json(file: Path) -> dict[str, Any]:
    """Read a dataset.json.

    Raises:
        KDError: see `read_model_files`.
    """
    dataset_json: dict[str, Any] = _read_checked(file, dataset_problems)
    return dataset_json


def _read_checked(file: Path, problems_of: Callable[[Any], Iterator[str]], whole_path: bool = True) -> Any:
    name = str(file) if whole_path else file.name
    content = read_json(file, name, MEND)
    with refuse_unexpected_content(name):
        problems = list(problems_of(content))
    if problems:
        raise KDError(f"{listing(f'{name} is not as nnU-Net writes it:', problems[:10])}\n{MEND}")
    return content


def plans_problems(plans: Any) -> Iterator[str]:
    """Why plans cannot be used, one line each. Networks are checked by `check_architecture`."""
    if not isinstance(plans, dict):
        yield f"expected keys with values, found {type(plans).__name__}"
        return
    for key in ("plans_name", "dataset_name"):
        if not is_plain_name(plans.get(key)):
            yield _value_problem(plans, key, "a name without path")
    yield from _not_of_nnunet(plans, OF_PLANS)
    configurations = plans.get("configurations")
    if not isinstance(configurations, dict) or not configurations:
        yield _value_problem(plans, "configurations", "configurations by name")
        return
    for name, configuration in configurations.items():
        if not isinstance(configuration, dict):
            yield f"configurations.{printable(name)}: expected keys with values, found {type(configuration).__name__}"
            continue
        yield from (f"configurations.{printable(name)}.{line}" for line in _configuration_problems(configuration, name))


def _configuration_problems(configuration: dict[str, Any], name: str) -> Iterator[str]:
    for key in ("patch_size", "spacing"):
        value = configuration.get(key, [1])
        if not isinstance(value, list) or not value or not all(_is_number(side) and 0 < side < 1e5 for side in value):
            yield _value_problem(configuration, key, "numbers above 0")
    batch_size = configuration.get("batch_size", 1)
    if not isinstance(batch_size, int) or not 0 < batch_size < 10_000:
        yield _value_problem(configuration, "batch_size", "a whole number above 0")
    identifier = configuration.get("data_identifier", "data")
    if not is_plain_name(identifier):
        yield _value_problem(configuration, "data_identifier", "a name without path")
    yield from _not_of_nnunet(configuration, OF_CONFIGURATIONS)
    schemes = configuration.get("normalization_schemes", [])
    if not isinstance(schemes, list):
        yield _value_problem(configuration, "normalization_schemes", "a list of names")
        return
    yield from (
        f"normalization_schemes: {printable(s)} is none of nnU-Net's"
        for s in schemes
        if not _is_there(NORMALIZATION, s)
    )


def dataset_problems(dataset_json: Any) -> Iterator[str]:
    """Why a dataset.json cannot be used, one line each."""
    if not isinstance(dataset_json, dict):
        yield f"expected keys with values, found {type(dataset_json).__name__}"
        return
    labels = dataset_json.get("labels")
    if isinstance(labels, dict) and labels and all(str(name).isdecimal() for name in labels):
        yield (
            'labels: by number, as in nnU-Net v1\'s files. Reverse them ({"1": "liver"} is {"liver": 1} now) and '
            "call modality channel_names; nnUNetv2_convert_old_nnUNet_dataset converts a whole dataset"
        )
        return
    ending = dataset_json.get("file_ending")
    if not isinstance(ending, str) or not ending.startswith(".") or not is_plain_name(f"case{ending}"):
        yield _value_problem(dataset_json, "file_ending", 'the end of a file\'s name, such as ".nii.gz"')
    if not isinstance(labels, dict) or not labels:
        yield _value_problem(dataset_json, "labels", "names with values")
    else:
        for name, value in labels.items():
            values = value if isinstance(value, list) else [value]
            if not values or not all(_is_label(one) for one in values):
                yield f"labels: {printable(name)}: expected whole numbers from 0 to 65535, found {printable(value)}"
            if not name.isprintable():
                yield f"labels: {printable(name)} is not a printable name"
    named = dataset_json.get("channel_names", dataset_json.get("modality"))
    by_number = isinstance(named, dict) and all(str(key).isdecimal() for key in named)
    if not named or not by_number or not all(str(name).isprintable() for name in named.values()):
        yield _value_problem(dataset_json, "channel_names", "names by number")
    order = dataset_json.get("regions_class_order")
    if order is not None and not (isinstance(order, list) and all(_is_label(one) for one in order)):
        yield _value_problem(dataset_json, "regions_class_order", "a list of labels")


def is_plain_name(name: Any) -> bool:
    """Whether a name is that of one file or folder: not a path, and with printable characters only."""
    return (
        isinstance(name, str)
        and 0 < len(name) <= 255
        and name.isprintable()
        and name not in (".", "..")
        and "/" not in name
        and "\\" not in name
        and not (os.name == "nt" and ":" in name)
    )


def _not_of_nnunet(values: dict[str, Any], names: dict[str, str]) -> Iterator[str]:
    """Names that nnU-Net looks up among its own classes, but that do not exist there, or are only imported there."""
    for key, folder in names.items():
        if key in values and not _is_there(folder, values[key]):
            yield f"{key}: {printable(values[key])} is none of nnU-Net's"


def _is_there(folder: str, name: Any) -> bool:
    return isinstance(name, str) and name.isidentifier() and _is_of_nnunet(folder, name)


@lru_cache(maxsize=256)
def _is_of_nnunet(folder: str, name: str) -> bool:
    place = Path(nnunetv2.__path__[0], *folder.split("/"))
    found = recursive_find_python_class(str(place), name, f"nnunetv2.{folder.replace('/', '.')}")
    return callable(found) and str(getattr(found, "__module__", "")).startswith("nnunetv2.")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_label(value: Any) -> bool:
    """Whether a value is a whole number, which old files write as text."""
    if isinstance(value, str):
        return value.isdecimal() and len(value) < 6
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**16


def _value_problem(values: dict[str, Any], key: str, expected: str) -> str:
    return f"{key}: expected {expected}, {f'found {printable(values[key])}' if key in values else 'which is missing'}"


def printable(value: Any) -> str:
    """A value from a file of unknown origin, made printable and short for a message."""
    try:
        text = value if isinstance(value, str) and value.isprintable() else ascii(value)
    except (ValueError, RecursionError):  # a number with thousands of digits; nested lists
        text = f"a {type(value).__name__}"
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
