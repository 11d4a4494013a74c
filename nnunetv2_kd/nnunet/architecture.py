"""Check the networks and operators that plans name. nnU-Net imports and calls them, so only classes of torch and
nnU-Net are allowed."""

import keyword
import pydoc
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import dynamic_network_architectures
from nnunetv2.utilities.find_class_by_name import recursive_find_python_class
from torch import nn

from nnunetv2_kd.errors import KDError, listing
from nnunetv2_kd.nnunet.model_files import printable
from nnunetv2_kd.nnunet.trust import HOW, is_trusted

PACKAGES = ("torch.nn", "dynamic_network_architectures", "nnunetv2")
LARGEST = 100_000  # limit on every number in a network's arguments; no network needs larger ones
MOST_STAGES = 30


def check_architecture(architecture: Any, where: str, trust: bool = False) -> None:
    """Check that the classes that a configuration's ``architecture`` names exist, and that importing them runs no
    foreign code. The check itself imports nothing outside of `PACKAGES`.

    Args:
        architecture: of a plans file, with ``network_class_name``, ``arch_kwargs`` and ``_kw_requires_import``.
        where: which plans, for the message.
        trust: allow any class; see `trust`.

    Raises:
        KDError: lists what is refused, and what does not have nnU-Net's form.
    """
    problems = list(_shape_problems(architecture))
    if problems:
        raise KDError(listing(f"The architecture in {where} is not as nnU-Net writes it:", problems))
    if is_trusted(trust):
        return
    problems = list(_name_problems(architecture))
    if problems:
        allowed = ", ".join(PACKAGES)
        title = (
            f"The architecture in {where} names code that was not run, because only classes of {allowed} may be named:"
        )
        raise KDError(f"{listing(title, problems)}\n{HOW}")


def _shape_problems(architecture: Any) -> Iterator[str]:
    if not isinstance(architecture, dict):
        yield f"expected keys with values, found {type(architecture).__name__}"
        return
    kinds: dict[str, Any] = {"network_class_name": str, "arch_kwargs": dict, "_kw_requires_import": (list, tuple)}
    for key, kind in kinds.items():
        if not isinstance(architecture.get(key), kind):
            yield f"{key}: {'found ' + printable(architecture[key]) if key in architecture else 'is missing'}"
            return
    kwargs = architecture["arch_kwargs"]
    for key in architecture["_kw_requires_import"]:
        if not isinstance(key, str) or key not in kwargs:
            yield f"_kw_requires_import: {printable(key)} is not in arch_kwargs"
        elif not isinstance(kwargs[key], (str, type(None))):
            yield f"{key}: expected the name of a class, found {printable(kwargs[key])}"
    for key, value in kwargs.items():
        if not isinstance(key, str) or not key.isidentifier() or keyword.iskeyword(key):
            yield f"arch_kwargs: {printable(key)} is not the name of an argument"
        if _too_large(value, LARGEST):
            yield f"{key}: {printable(value)} is too large"
    stages = kwargs.get("n_stages", 1)
    if isinstance(stages, bool) or not isinstance(stages, int) or not 1 <= stages <= MOST_STAGES:
        yield f"n_stages: expected 1 to {MOST_STAGES}, found {printable(stages)}"


def _too_large(value: Any, limit: float) -> bool:
    if isinstance(value, dict):
        return any(_too_large(entry, limit) for entry in value.values())
    if isinstance(value, (list, tuple)):
        return len(value) > 1000 or any(_too_large(entry, limit) for entry in value)
    return isinstance(value, (int, float)) and not abs(value) <= limit


def _name_problems(architecture: dict[str, Any]) -> Iterator[str]:
    name = architecture["network_class_name"]
    if not is_allowed(name) and _find_moved(name) is None:
        yield f"network_class_name: {_describe_class(name)}"
    for key in architecture["_kw_requires_import"]:
        value = architecture["arch_kwargs"][key]
        if value is not None and not is_allowed(value):
            yield f"{key}: {_describe_class(value)}"


@lru_cache(maxsize=256)
def is_allowed(name: str) -> bool:
    """Whether a dotted name is a module class (`torch.nn.Module`) that one of the allowed packages defines. Names that
    such a package merely imports, such as ``torch.serialization.os.system``, are not allowed."""
    if not _is_inside(name):
        return False
    try:
        found = pydoc.locate(name)
    except Exception:  # any error: pydoc wraps whatever an import raises
        return False
    return isinstance(found, type) and issubclass(found, nn.Module) and _is_inside(found.__module__ + ".")


def _is_inside(name: str) -> bool:
    parts = name.removesuffix(".").split(".")
    return all(part.isidentifier() for part in parts) and name.startswith(tuple(f"{one}." for one in PACKAGES))


def _find_moved(name: str) -> type | None:
    """Find a class that has moved within its package, by the last part of its name, as nnU-Net does."""
    if not name.startswith("dynamic_network_architectures.") or not _is_inside(name):
        return None
    folder = Path(dynamic_network_architectures.__path__[0]) / "architectures"
    last = name.split(".")[-1]
    found = recursive_find_python_class(str(folder), last, "dynamic_network_architectures.architectures")
    return found if isinstance(found, type) and issubclass(found, nn.Module) else None


def _describe_class(name: str) -> str:
    if _is_inside(name):
        return f"{printable(name)}: this network or operator is not installed"
    return printable(name)
