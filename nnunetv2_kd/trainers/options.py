"""All options of a distillation training: read, merged, and checked before any time is spent.

Options come from the variables ``nnUNet_kd_name`` and ``nnUNet_kd_seed``, from the YAML file that the environment
variable ``nnUNet_kd_config`` names, from the key ``"kd"`` of the plans, and from the trainer's defaults. The first of
these that has a top-level key determines its whole value.
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, Field, SerializeAsAny, ValidationError, field_validator, model_validator

from nnunetv2_kd.choices import CpuSpeed
from nnunetv2_kd.config import (
    CheckedOptions,
    CombineOptions,
    OptimizerOptions,
    Schedule,
    StudentOptions,
    TeacherOptions,
    WeightedTeacherOptions,
    expand_path,
    problems_of,
)
from nnunetv2_kd.errors import KDError, listing
from nnunetv2_kd.methods import Method
from nnunetv2_kd.methods.registry import read_methods
from nnunetv2_kd.nnunet.model_files import printable
from nnunetv2_kd.nnunet.trust import HOW, is_trusted
from nnunetv2_kd.nnunet.yaml_file import NotReadableError, read_yaml

VARIABLE = "nnUNet_kd_config"
MOST = 10_000_000  # epochs, iterations
NAME, SEED = "nnUNet_kd_name", "nnUNet_kd_seed"  # they override the options file


class Options(CheckedOptions):
    """All options of one training."""

    teacher: TeacherOptions = TeacherOptions()
    teachers: tuple[WeightedTeacherOptions, ...] | None = Field(None, description="several, instead of teacher")
    stored_teacher: str | None = Field(None, description="a store's name or folder, instead of running a teacher")
    combine: CombineOptions = CombineOptions()
    student: StudentOptions = StudentOptions()
    terms: Annotated[dict[str, SerializeAsAny[Method]], BeforeValidator(read_methods)] = Field(
        {}, description="the distillation methods by name; methods that are not named are not computed"
    )
    schedule: Schedule = Schedule()
    balance: Literal["gradient"] | None = Field(
        None, description="gradient: a term's weight is the ratio of its gradient's length to that of nnU-Net's loss"
    )
    optimizer: OptimizerOptions | None = Field(
        None, description="default: adamw for shrunken students below a million parameters, otherwise nnunet"
    )
    ema: float | None = Field(None, gt=0, lt=1, description="keep a running mean of the weights, with this decay")
    epochs: int | None = Field(None, ge=1, le=MOST, description="default: the trainer's own, 1000 in nnU-Net")
    iterations_per_epoch: int | None = Field(
        None, ge=1, le=MOST, description="default: the trainer's own, 250 in nnU-Net"
    )
    val_iterations_per_epoch: int | None = Field(
        None, ge=1, le=MOST, description="default: the trainer's own, 50 in nnU-Net"
    )
    save_every: int | None = Field(
        None, ge=1, le=MOST, description="epochs between checkpoints; default: nnU-Net's, 50"
    )
    mirroring: Literal["teacher", "trainer"] | tuple[Annotated[int, Field(ge=0, le=2)], ...] = Field(
        "teacher",
        description="teacher: along the axes that teacher and trainer both mirror; trainer: the trainer's own axes; or "
        "a list of axes of the patch, [] for none",
    )
    name: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9-]+(_[A-Za-z0-9-]+)*$",
        max_length=60,
        description="added to the plans' name, so that this variant of the student has its own folder",
    )
    seed: int | None = Field(None, ge=0, lt=2**31, description="seeds weights and, with nnUNet_n_proc_DA=0, the data")
    cpu_bfloat16: bool = Field(False, description="short for cpu_speed: bfloat16_channels_last")
    cpu_speed: CpuSpeed | None = Field(
        None, description="how student and teachers compute on a CPU; default: float32, as nnU-Net does"
    )

    @field_validator("stored_teacher")
    @classmethod
    def _absolute_folder(cls, name: str | None) -> str | None:
        if name is not None and not name.strip():
            raise ValueError("expected the name or folder of a store")
        return str(expand_path(Path(name))) if name is not None and len(Path(name).parts) > 1 else name

    @model_validator(mode="after")
    def _one_or_several_teachers(self) -> "Options":
        named = sorted({"teacher", "teachers"} & self.model_fields_set)
        if self.stored_teacher is not None and named:
            raise ValueError(f"a stored teacher is not run: remove {' and '.join(named)}, or stored_teacher")
        if self.stored_teacher is not None and self.combine != CombineOptions():
            raise ValueError("a store of several teachers is their mean: remove combine, or stored_teacher")
        if self.teachers is None:
            if "combine" in self.model_fields_set and self.combine != CombineOptions():
                raise ValueError("combine needs several teachers; name them under teachers")
            return self
        if "teacher" in self.model_fields_set:
            raise ValueError("name one teacher under teacher or several under teachers, not both")
        if len(self.teachers) < 2:
            raise ValueError(f"teachers needs at least two models, found {len(self.teachers)}; for one use teacher")
        if sum(teacher.weight for teacher in self.teachers) == 0:
            raise ValueError("the weights of the teachers sum to 0")
        return self

    @model_validator(mode="after")
    def _one_speed(self) -> "Options":
        if self.cpu_bfloat16 and self.cpu_speed is not None:
            raise ValueError("give cpu_bfloat16 or cpu_speed, not both")
        return self

    def active_terms(self) -> dict[str, Method]:
        """The terms whose weight is not 0."""
        return {name: method for name, method in self.terms.items() if method.weight > 0}

    def speed_on_cpu(self) -> CpuSpeed:
        return self.cpu_speed or ("bfloat16_channels_last" if self.cpu_bfloat16 else "float32")

    def all_teachers(self) -> tuple[TeacherOptions, ...]:
        """The single teacher, or all of several."""
        return self.teachers or (self.teacher,)


def options_file() -> Path | None:
    """The file that ``nnUNet_kd_config`` names; None if the variable is not set."""
    name = os.environ.get(VARIABLE, "").strip()
    return _expanded_file(name) if name else None


def _expanded_file(name: str) -> Path:
    try:
        return Path(name).expanduser()
    except RuntimeError:  # no such user: the file is then reported as missing
        return Path(name)


def options_of_environment() -> dict[str, Any]:
    """Name and seed of a student, if given by the variables ``nnUNet_kd_name`` and ``nnUNet_kd_seed``."""
    values = {key: os.environ.get(variable, "").strip() for key, variable in (("name", NAME), ("seed", SEED))}
    return {key: value for key, value in values.items() if value}


def read_options_file(path: Path) -> dict[str, Any]:
    """Top-level keys of an options file.

    Raises:
        KDError: if it is missing, not YAML, or not a mapping.
    """
    return _read(path)[0]


def _read(path: Path) -> tuple[dict[str, Any], yaml.Node | None]:
    """Keys of an options file, and its nodes."""
    try:
        content, root = read_yaml(path)
    except OSError as error:
        whole = path.absolute()
        raise KDError(f"{VARIABLE} names the options file {whole}, which cannot be read: {error.strerror}.") from error
    except NotReadableError as error:
        raise KDError(f"The options file {path.absolute()} is not valid YAML: {error}") from error
    if content is None:
        return {}, None
    if not isinstance(content, dict):
        raise KDError(
            f"The options file {path.absolute()} must hold keys such as 'terms:', found {type(content).__name__}."
        )
    return {str(key): value for key, value in content.items()}, root


def line_finder(root: yaml.Node | None, content: Mapping[str, Any]) -> Callable[[tuple[int | str, ...]], int | None]:
    """A function that finds the line of a key in an options file, or of the key that contains it; None if neither is in
    the file."""
    if root is None:
        return lambda path: None

    def line_of(path: tuple[int | str, ...]) -> int | None:
        node: Any = root
        line = None
        if not path or path[0] not in content:
            return None
        for part in path:
            if isinstance(node, yaml.MappingNode):
                found = [(key, value) for key, value in node.value if key.value == str(part)]
            elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
                found = [(node.value[part], node.value[part])]
            else:
                found = []
            if not found:
                break
            (key, node), *_ = found
            line = key.start_mark.line + 1
        return line

    return line_of


def _check_methods_of_plans(options: Mapping[str, Any]) -> None:
    """Check that plans name no Python file. Plans come from strangers more often than options files do.

    Raises:
        KDError: if they name one.
    """
    terms = options.get("terms")
    files = [str(name) for name in terms if ":" in str(name)] if isinstance(terms, Mapping) else []
    if files and not is_trusted():
        title = "The key 'kd' of the plans names methods in Python files, which were not run:"
        raise KDError(f"{listing(title, [printable(name) for name in files])}\nName them in an options file. {HOW}")


def resolve_options(
    defaults: Mapping[str, Any],
    plans: Mapping[str, Any],
    file: Path | None = None,
    environment: Mapping[str, Any] | None = None,
) -> Options:
    """Options of a training. For each top-level key, the environment comes before the file, the plans, and the
    defaults.

    Args:
        defaults: the trainer's.
        plans: the plans, whose key ``"kd"`` may hold options.
        file: an options file, or None.
        environment: from `options_of_environment`.

    Raises:
        KDError: lists every problem, and where it is.
    """
    from_plans = plans.get("kd", {})
    if not isinstance(from_plans, Mapping):
        raise KDError(f"The key 'kd' of the plans must hold options, found {type(from_plans).__name__}.")
    _check_methods_of_plans(from_plans)
    from_file, root = _read(file) if file is not None else ({}, None)
    merged = {**defaults, **from_plans, **from_file, **(environment or {})}
    try:
        return Options.model_validate(merged)
    except ValidationError as error:
        of_environment = " and ".join({"name": NAME, "seed": SEED}[key] for key in environment or {})
        sources = [str(file.absolute()) if file else "", "the plans' key 'kd'" if from_plans else "", of_environment]
        where = " and ".join(source for source in sources if source) or "the trainer's defaults"
        problems = problems_of(error, line_finder(root, from_file), list(Options.model_fields))
        raise KDError(listing(f"The distillation options in {where} cannot be used:", problems)) from error
