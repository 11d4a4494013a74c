"""Options of teachers, students and schedules, with types and checks. This module does not import torch."""

import difflib
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

# pydantic's kinds of problems, in plain words
BOUNDS = {
    "greater_than": ("greater than", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("less than", "lt"),
    "less_than_equal": ("at most", "le"),
}
PLAIN = {
    "extra_forbidden": "unknown key",
    "missing": "is missing",
    "int": "must be a whole number",
    "float": "must be a number",
    "finite_number": "must be a number, not infinite",
    "bool": "must be true or false",
    "string_pattern_mismatch": "must consist of letters, digits and hyphens, with single underscores between them",
    "string_too_long": "is too long",
    "string": "must be text",
    "list": "must be a list",
    "tuple": "must be a list",
    "dict": "must be keys with values",
    "model": "must be keys with values",
    "path": "must be a path",
}

SHOWN, LONGEST, MOST_PROBLEMS = 120, 400, 20  # longest value, longest reason, and number of lines in a message

Rule = Literal["mean", "confidence", "region"]


class CheckedOptions(BaseModel):
    """Immutable options that refuse unknown keys, infinity and nan."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _reject_bool(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse true and false (also YAML's ``yes`` and ``on``) for numbers: ``epochs: yes`` is a mistake."""
        found = any(isinstance(entry, bool) for entry in (value if isinstance(value, list) else [value]))
        if found and not _takes_bool(cls.model_fields[str(info.field_name)].annotation):
            raise ValueError("must not be true or false (yes, no, on, off)")
        return value


def _takes_bool(annotation: Any) -> bool:
    return annotation in (bool, Any) or any(_takes_bool(part) for part in get_args(annotation))


def expand_path(path: Path) -> Path:
    """The absolute path, with ``~`` replaced.

    Raises:
        ValueError: if there is no such user.
    """
    try:
        return path.expanduser().absolute()
    except RuntimeError as error:
        raise ValueError(f"there is no home folder for {path.parts[0]}") from error


class TeacherOptions(CheckedOptions):
    """Which trained model teaches. By default: the same dataset, plans, configuration and fold as the student."""

    trainer: str = Field("nnUNetTrainer", description="the teacher's -tr")
    plans: str | None = Field(None, description="the teacher's -p; default: the plans that the student was made from")
    configuration: str | None = Field(None, description="the teacher's -c; default: the student's")
    folder: Path | None = Field(
        None, description="a model folder, or a zip from nnU-Net, instead of trainer, plans and configuration"
    )
    fold: int | Literal["all"] | None = Field(None, description="default: the student's fold")
    checkpoint: str = Field("checkpoint_final.pth", description="file name inside the fold folder")
    trust: bool = Field(
        False,
        description="load a checkpoint that contains more than plain data, and a network of any package that the plans "
        "name (formerly trust_pickle). Both can run code",
    )

    labels: dict[str, tuple[str, ...]] | None = Field(
        None,
        description="for a label of the student, the teacher's labels that make it up: {kidney: [kidney_left, "
        "kidney_right]}; null: not taught; others are matched by name. Default: both have the same labels",
    )

    @model_validator(mode="before")
    @classmethod
    def _former_name(cls, values: Any) -> Any:
        if not isinstance(values, dict) or "trust_pickle" not in values or "trust" in values:
            return values
        return {("trust" if key == "trust_pickle" else key): value for key, value in values.items()}

    @field_validator("labels", mode="before")
    @classmethod
    def _names(cls, labels: Any) -> Any:
        if not isinstance(labels, dict):
            return labels
        return {name: () if v is None else (v,) if isinstance(v, str) else v for name, v in labels.items()}

    @field_validator("folder")
    @classmethod
    def _absolute(cls, folder: Path | None) -> Path | None:
        return folder and expand_path(folder)

    @model_validator(mode="after")
    def _folder_or_names(self) -> "TeacherOptions":
        named = self.model_fields_set & {"trainer", "plans", "configuration"}
        if self.folder is not None and named:
            raise ValueError(f"name the teacher by folder or by {', '.join(sorted(named))}, not by both")
        return self


class WeightedTeacherOptions(TeacherOptions):
    """One of several teachers."""

    weight: float = Field(1.0, ge=0, description="how much this teacher counts relative to the others")


class CombineOptions(CheckedOptions):
    """How to combine several teachers into one. Their probabilities are mixed."""

    rule: Rule = Field(
        "mean", description="equally, by each teacher's accuracy at a voxel, or by its accuracy in a region"
    )
    tau: float = Field(
        1.0,
        ge=0.001,
        le=1000,
        description="for the rule confidence: the smaller it is, the more the best teacher counts",
    )


class StudentOptions(CheckedOptions):
    """How large the student is, relative to the plans given with -p. Give one of width, params, flops,
    features and latency."""

    width: float | None = Field(
        None, gt=0, le=1, description="factor on the channels of the plans given with -p; default: 0.5"
    )
    params: str | None = Field(None, description='maximum number of parameters: "0.5M", "120k", or a fraction, "0.1"')
    flops: str | None = Field(None, description='maximum FLOPs per patch: "20G", or a fraction, "0.1"')
    features: str | None = Field(None, description='channels per stage: "8,16,32,64", or a list of them')
    latency: str | None = Field(
        None,
        description='maximum time for a whole case: "300ms", "1.5s". Only nnUNetv2_kd plan measures it, and writes the '
        "shape into the plans; a training does not",
    )
    convs_per_stage: int | None = Field(None, ge=1, description="maximum number of convolutions (or blocks) per stage")
    start: Literal["teacher"] | None = Field(
        None, description="teacher: start from a selection of the teacher's channels instead of random weights"
    )

    @field_validator("features", mode="before")
    @classmethod
    def _features(cls, value: Any) -> Any:
        return None if value is None else ",".join(str(channels) for channels in parse_features(value))

    @field_validator("latency", mode="before")
    @classmethod
    def _latency(cls, value: Any) -> Any:
        return None if value is None else f"{parse_latency(value):.6f}".rstrip("0").rstrip(".") + "ms"

    @field_validator("params", "flops", mode="before")
    @classmethod
    def _budget(cls, value: Any) -> Any:
        if value is not None:
            parse_budget(value)
        return None if value is None else str(value)

    @model_validator(mode="after")
    def _one_size(self) -> "StudentOptions":
        names = ("width", "params", "flops", "features", "latency")
        sizes = [name for name in names if getattr(self, name) is not None]
        if len(sizes) > 1:
            raise ValueError(f"give one of {', '.join(names[:-1])} and {names[-1]}, not {' and '.join(sizes)}")
        return self


class Schedule(CheckedOptions):
    """One factor on all distillation terms over the training: a linear rise, a plateau, and a cosine fall."""

    warmup: float = Field(0.0, ge=0, le=1, description="share of the training over which the factor rises from 0")
    decay_from: float = Field(1.0, ge=0, le=1, description="share of the training after which it falls")
    final: float = Field(1.0, ge=0, description="the value to which it falls at the end")
    every: int = Field(
        1,
        ge=1,
        le=50,
        description="the teacher runs in one of this many steps; the other steps use nnU-Net's loss alone",
    )

    @model_validator(mode="after")
    def _in_order(self) -> "Schedule":
        if self.decay_from < self.warmup:
            raise ValueError(f"decay_from ({self.decay_from}) must not come before the end of warmup ({self.warmup})")
        return self


class OptimizerOptions(CheckedOptions):
    """How the weights are trained. ``nnunet``: the trainer's own optimizer, without further options."""

    name: Literal["nnunet", "adamw", "sgd"] = "nnunet"
    lr: float | None = Field(None, gt=0, description="maximum learning rate; default: 0.01")
    weight_decay: float | None = Field(None, ge=0, description="default: 0.01 for adamw, 3e-5 for sgd")
    schedule: Literal["poly", "cosine", "constant"] = Field("poly", description="how the learning rate falls")
    warmup: float = Field(0.0, ge=0, lt=1, description="share of the training over which it first rises")

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _nothing_beside_nnunet(self) -> "OptimizerOptions":
        fields = type(self).model_fields
        others = [name for name in fields if name != "name" and getattr(self, name) != fields[name].default]
        if self.name == "nnunet" and others:
            raise ValueError(f"nnunet is the trainer's own optimizer: remove {', '.join(others)}, or name adamw or sgd")
        return self

    def resolved(self) -> tuple[float, float]:
        """Learning rate and weight decay."""
        lr, weight_decay = {"adamw": (0.01, 0.01), "sgd": (0.01, 3e-5)}[self.name]
        return lr if self.lr is None else self.lr, weight_decay if self.weight_decay is None else self.weight_decay


def parse_budget(value: Any) -> tuple[float, bool]:
    """Read a size such as ``"0.5M"``, ``"20G"`` or ``0.1``.

    Returns:
        The number, and whether it is a fraction of the teacher's size (a bare number up to 1) instead of a count.

    Raises:
        ValueError: if it is neither.

    >>> parse_budget("0.5M"), parse_budget(0.1)
    ((500000.0, False), (0.1, True))
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([kKmMgGtT]?)\s*", str(value))
    if match is None or float(match[1]) <= 0:
        raise ValueError(f'expected a size such as "0.5M" or a fraction such as "0.1", found {value!r}')
    number = float(match[1]) * {"": 1, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}[match[2].lower()]
    return number, match[2] == "" and number <= 1


def parse_features(value: Any) -> list[int]:
    """Read channels per stage from ``"8,16,32,64"`` or a list.

    Raises:
        ValueError: if they are not whole numbers from 1 on.

    >>> parse_features("8,16,32")
    [8, 16, 32]
    """
    parts = value if isinstance(value, (list, tuple)) else str(value).split(",")
    if not parts or not all(re.fullmatch(r"\s*[1-9]\d{0,4}\s*", str(part)) for part in parts):
        raise ValueError(f'expected channels per stage such as "8,16,32,64", found {value!r}')
    return [int(part) for part in parts]


def parse_latency(value: Any) -> float:
    """Read milliseconds from ``"300ms"``, ``"1.5s"`` or ``300``.

    Raises:
        ValueError: if it is not a time, or not between 1 ms and an hour.

    >>> parse_latency("1.5s")
    1500.0
    """
    match = re.fullmatch(r"\s*(\d{1,9}(?:\.\d{1,9})?)\s*(ms|s)?\s*", str(value))
    milliseconds = float(match[1]) * (1000 if match[2] == "s" else 1) if match else 0.0
    if not 1 <= milliseconds <= 3_600_000:
        raise ValueError(f'expected a time between 1ms and 3600s, such as "300ms" or "1.5s", found {value!r}')
    return milliseconds


def problems_of(
    error: ValidationError,
    line_of: Callable[[tuple[int | str, ...]], int | None] | None = None,
    keys: Sequence[str] = (),
) -> list[str]:
    """One line per problem: where it is, what is wrong, and what was found.

    Args:
        error: pydantic's.
        line_of: finds a key's line in the options file from its path; None if the key is not in a file.
        keys: the known top-level keys, to suggest for an unknown one.
    """
    lines = []
    found_at = [(line_of(problem["loc"]) if line_of is not None else None, problem) for problem in error.errors()]
    for line, problem in sorted(found_at, key=lambda pair: pair[0] or 0):
        path = problem["loc"]
        where = ("" if line is None else f"line {line}, ") + (".".join(map(str, path)) or "options")
        meant = _suggest_key(str(path[0]), keys) if problem["type"] == "extra_forbidden" and len(path) == 1 else ""
        found = "" if isinstance(problem["input"], dict) else f" (found {shorten(problem['input'])})"
        lines.append(f"{where[:SHOWN]}: {describe_problem(problem)[:LONGEST]}{meant}{found}")
    more = len(lines) - MOST_PROBLEMS
    return lines if more <= 0 else [*lines[:MOST_PROBLEMS], f"and {more} more"]


def shorten(value: Any) -> str:
    """A value for a message, shortened if it is long."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number with thousands of digits; nested lists
        text = f"a {type(value).__name__}"
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def _suggest_key(key: str, keys: Sequence[str]) -> str:
    close = difflib.get_close_matches(key, keys, n=1)
    return f"; did you mean {close[0]}?" if close else f"; keys are {', '.join(keys)}" if keys else ""


def describe_problem(problem: Any) -> str:
    """What was expected, in the words of an options file's user.

    Args:
        problem: one of pydantic's ``ValidationError.errors()``.

    >>> describe_problem({"type": "greater_than", "ctx": {"gt": 0}})
    'must be greater than 0'
    """
    kind, context = problem["type"], problem.get("ctx", {})
    if kind in BOUNDS:
        word, key = BOUNDS[kind]
        return f"must be {word} {context[key]:g}"
    if kind == "literal_error":
        return f"must be {context['expected']}"
    if kind == "value_error":
        return str(context["error"])
    plain = next((words for start, words in PLAIN.items() if kind.startswith(start)), None)
    return plain or str(problem["msg"])
