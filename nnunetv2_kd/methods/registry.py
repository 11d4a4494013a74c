"""Which method a name under ``terms:`` means: one of ours, one that an installed package registers, or one in a file.

A package registers its methods in the entry-point group `GROUP`; a file needs no package:
``terms: {"my_losses.py:MyTerm": {weight: 0.5}}``.
"""

import importlib.util
import inspect
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from nnunetv2_kd.config import describe_problem
from nnunetv2_kd.errors import KDError
from nnunetv2_kd.methods import OWN_METHODS
from nnunetv2_kd.methods.method import Method
from nnunetv2_kd.nnunet.files import sha256

GROUP = "nnunetv2_kd.methods"


@dataclass(frozen=True)
class Source:
    """Where a method that is not ours comes from: a distribution with its version, or a file with its SHA-256."""

    described: str

    def __str__(self) -> str:
        return self.described


def own_methods() -> dict[str, type[Method]]:
    """Our own methods by name."""
    return {method.name: method for method in OWN_METHODS}


def registered_methods() -> dict[str, EntryPoint]:
    """The methods that installed packages register, by name; none is loaded."""
    return {entry.name: entry for entry in entry_points(group=GROUP)}


def method_names() -> list[str]:
    """Every name that can stand under ``terms:``, ours first."""
    return [*own_methods(), *sorted(set(registered_methods()) - set(own_methods()))]


def find_method(name: str) -> type[Method]:
    """The method of that name.

    Raises:
        KDError: if there is none, or its package or file is broken; names the package and entry point, or the file, and
            what is wrong.
    """
    if name in own_methods():
        taken = registered_methods().get(name)
        if taken is not None:
            raise KDError(
                f"{_distribution(taken)} registers a method named {name!r}, which is the name of one of nnunetv2_kd's "
                "own. Its author must give it another name; until then: pip uninstall "
                f"{taken.dist.name if taken.dist else taken.value}"
            )
        return own_methods()[name]
    if ":" in name:
        return _load_file(name)
    entries = [entry for entry in entry_points(group=GROUP) if entry.name == name]
    if len(entries) > 1:
        who = " and ".join(_distribution(entry) for entry in entries)
        raise KDError(f"{who} both register a method named {name!r}. Uninstall one of them.")
    if not entries:
        raise KDError(f"There is no method {name!r}. Methods: {', '.join(method_names())}.")
    return _load(entries[0])


def source_of(name: str) -> Source | None:
    """Where a method comes from; None for our own."""
    if ":" in name:
        file = _file_of(name)
        return Source(f"{file}, SHA-256 {sha256(file)}")
    entry = registered_methods().get(name)
    return Source(f"{_distribution(entry)}, {entry.value}") if entry is not None and name not in own_methods() else None


def read_methods(terms: Any) -> dict[str, Method]:
    """The methods given under ``terms:``; a name without a value, or with ``null``, is left out.

    Raises:
        ValidationError: lists every problem of every method, and where it is.
        ValueError: if ``terms`` is not a mapping.
    """
    if not isinstance(terms, Mapping):
        raise ValueError("expected names of methods with their options")
    methods: dict[str, Method] = {}
    problems: list[InitErrorDetails] = []
    ours = list(own_methods())
    # ours in the order of our list, then the others: their order in the file has no meaning
    for name, options in sorted(terms.items(), key=lambda term: ours.index(term[0]) if term[0] in ours else len(ours)):
        if options is None:
            continue
        try:
            methods[name] = options if isinstance(options, Method) else find_method(str(name)).model_validate(options)
        except ValidationError as error:
            problems += [
                _problem(_describe_problem(p, str(name)), (str(name), *p["loc"]), p["input"]) for p in error.errors()
            ]
        except KDError as error:
            problems.append(_problem(str(error), (str(name),), options))
    names: dict[str, str] = {}
    for name, method in methods.items():
        if method.name in names:
            twice = f"calls itself {method.name!r}, and so does {names[method.name]}: rename one of them"
            problems.append(_problem(twice, (str(name),), method.name))
        names[method.name] = str(name)
    if problems:
        raise ValidationError.from_exception_data("terms", problems)
    return methods


def _describe_problem(problem: Any, name: str) -> str:
    """A problem in words; for an unknown option, with a list of the known ones."""
    if problem["type"] != "extra_forbidden":
        return describe_problem(problem)
    return f"unknown option; {name} has {', '.join(find_method(name).model_fields)}"


def _problem(message: str, where: tuple[int | str, ...], found: Any) -> InitErrorDetails:
    # pydantic reads braces as placeholders
    escaped = message.replace("{", "{{").replace("}", "}}")
    return InitErrorDetails(type=PydanticCustomError("method", escaped), loc=where, input=found)


def _distribution(entry: EntryPoint) -> str:
    return f"The package {entry.dist.name} {entry.dist.version}" if entry.dist is not None else "A package"


def _load(entry: EntryPoint) -> type[Method]:
    where = f"{_distribution(entry)}, entry point {entry.name} = {entry.value}"
    try:
        found = entry.load()
    except Exception as error:  # third-party code may raise anything
        raise KDError(f"{where} cannot be loaded: {type(error).__name__}: {error}") from error
    return _require_method(found, where)


@cache
def _load_file(name: str) -> type[Method]:
    file, class_name = _file_of(name), name.rpartition(":")[2]
    module_name = f"nnunetv2_kd_method_{sha256(file)[:16]}"
    spec = importlib.util.spec_from_file_location(module_name, file)
    if spec is None or spec.loader is None:
        raise KDError(f"The method {name!r} should be in {file}, which is not a Python file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # third-party code may raise anything
        del sys.modules[module_name]
        raise KDError(f"The method {name!r} cannot be loaded from {file}: {type(error).__name__}: {error}") from error
    if not hasattr(module, class_name):
        classes = [n for n, value in vars(module).items() if inspect.isclass(value) and value.__module__ == module_name]
        raise KDError(f"{file} has no class {class_name!r}. Its classes: {', '.join(classes) or 'none'}.")
    return _require_method(getattr(module, class_name), f"{file}, class {class_name}")


def _file_of(name: str) -> Path:
    file = Path(name.rpartition(":")[0]).expanduser().absolute()
    if not file.is_file():
        raise KDError(f"The method {name!r} should be in {file}, which does not exist.")
    return file


def _require_method(found: Any, where: str) -> type[Method]:
    if not (inspect.isclass(found) and issubclass(found, Method) and hasattr(found, "needs")):
        raise KDError(f"{where} is not a method: expected a subclass of nnunetv2_kd.methods.Method with 'needs'.")
    if found.__call__ is Method.__call__:
        raise KDError(f"{where} computes nothing: it has no __call__.")
    method: type[Method] = found
    return method
