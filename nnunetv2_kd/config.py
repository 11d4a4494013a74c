"""Every option of a distillation training, typed and checked.

Options come from the YAML file that the environment variable ``nnUNet_kd_config`` names, from the key ``"kd"`` of the
plans, and from the trainer's defaults; the first that names a top-level key wins it whole.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from nnunetv2_kd.errors import KDError, listing
from nnunetv2_kd.losses import Rule
from nnunetv2_kd.speed import CpuSpeed
from nnunetv2_kd.term_options import CheckedOptions, Terms

VARIABLE = "nnUNet_kd_config"


class TeacherOptions(CheckedOptions):
    """Which trained model teaches. By default: the same dataset, plans, configuration and fold as the student."""

    trainer: str = Field("nnUNetTrainer", description="the teacher's -tr")
    plans: str | None = Field(None, description="the teacher's -p; default: the plans that the student was made from")
    configuration: str | None = Field(None, description="the teacher's -c; default: the student's")
    folder: Path | None = Field(None, description="a model folder, instead of trainer, plans and configuration")
    fold: int | Literal["all"] | None = Field(None, description="default: the student's fold")
    checkpoint: str = Field("checkpoint_final.pth", description="file name inside the fold folder")
    trust_pickle: bool = Field(
        False, description="load a checkpoint that carries more than plain data. It can run code"
    )

    @field_validator("folder")
    @classmethod
    def _absolute(cls, folder: Path | None) -> Path | None:
        return folder and folder.expanduser().absolute()

    @model_validator(mode="after")
    def _folder_or_names(self) -> "TeacherOptions":
        named = self.model_fields_set & {"trainer", "plans", "configuration"}
        if self.folder is not None and named:
            raise ValueError(f"name the teacher by folder or by {', '.join(sorted(named))}, not by both")
        return self


class WeightedTeacherOptions(TeacherOptions):
    """One of several teachers."""

    weight: float = Field(1.0, ge=0, description="how much this teacher counts beside the others")


class CombineOptions(CheckedOptions):
    """How several teachers become one answer, always on probabilities."""

    rule: Rule = Field(
        "mean", description="everywhere alike, by how right each is at a voxel, or by how well each knows a region"
    )
    tau: float = Field(1.0, gt=0, description="of the rule confidence: the smaller, the more the best one decides")


class StudentOptions(CheckedOptions):
    """How large the student is, relative to the plans given with -p. Give one of width, params and flops."""

    width: float | None = Field(
        None, gt=0, le=1, description="factor on the channels of the plans given with -p; default: 0.5"
    )
    params: str | None = Field(None, description='at most so many parameters: "0.5M", "120k", or a fraction, "0.1"')
    flops: str | None = Field(None, description='at most so many FLOPs per patch: "20G", or a fraction, "0.1"')
    convs_per_stage: int | None = Field(None, ge=1, description="convolutions (or blocks) per stage, at most")

    @field_validator("params", "flops", mode="before")
    @classmethod
    def _budget(cls, value: Any) -> Any:
        if value is not None:
            parse_budget(value)
        return None if value is None else str(value)

    @model_validator(mode="after")
    def _one_size(self) -> "StudentOptions":
        sizes = [name for name in ("width", "params", "flops") if getattr(self, name) is not None]
        if len(sizes) > 1:
            raise ValueError(f"give one of width, params and flops, not {' and '.join(sizes)}")
        return self


class Schedule(CheckedOptions):
    """One factor on all distillation terms over the training: linear rise, plateau, cosine fall."""

    warmup: float = Field(0.0, ge=0, le=1, description="share of the training over which the factor rises from 0")
    decay_from: float = Field(1.0, ge=0, le=1, description="share of the training after which it falls")
    final: float = Field(1.0, ge=0, description="where it falls to, at the end")

    @model_validator(mode="after")
    def _in_order(self) -> "Schedule":
        if self.decay_from < self.warmup:
            raise ValueError(f"decay_from ({self.decay_from}) must not come before the end of warmup ({self.warmup})")
        return self


class OptimizerOptions(CheckedOptions):
    """How the weights are trained. ``nnunet``: as the trainer does by itself, whatever else is given elsewhere."""

    name: Literal["nnunet", "adamw", "sgd"] = "nnunet"
    lr: float | None = Field(None, gt=0, description="at its highest; default: 0.003 of adamw, 0.01 of sgd")
    weight_decay: float | None = Field(None, ge=0, description="default: 0.01 of adamw, 3e-5 of sgd")
    schedule: Literal["poly", "cosine", "constant"] = Field("poly", description="how the learning rate falls")
    warmup: float = Field(0.0, ge=0, lt=1, description="share of the training over which it rises first")

    @model_validator(mode="after")
    def _nothing_beside_nnunet(self) -> "OptimizerOptions":
        others = sorted(self.model_fields_set - {"name"})
        if self.name == "nnunet" and others:
            raise ValueError(f"nnunet is the trainer's own optimizer: remove {', '.join(others)}, or name adamw or sgd")
        return self

    def resolved(self) -> tuple[float, float]:
        """Learning rate and weight decay."""
        lr, weight_decay = {"adamw": (0.003, 0.01), "sgd": (0.01, 3e-5)}[self.name]
        return lr if self.lr is None else self.lr, weight_decay if self.weight_decay is None else self.weight_decay


class Options(CheckedOptions):
    """All options of one training."""

    teacher: TeacherOptions = TeacherOptions()
    teachers: tuple[WeightedTeacherOptions, ...] | None = Field(None, description="several, instead of teacher")
    stored_teacher: str | None = Field(None, description="a store's name or folder, instead of running a teacher")
    combine: CombineOptions = CombineOptions()
    student: StudentOptions = StudentOptions()
    terms: Terms = Terms()
    schedule: Schedule = Schedule()
    optimizer: OptimizerOptions = OptimizerOptions()
    ema: float | None = Field(None, gt=0, lt=1, description="keep a running mean of the weights, with this decay")
    epochs: int | None = Field(None, ge=1, description="default: the trainer's own, 1000 in nnU-Net")
    iterations_per_epoch: int | None = Field(None, ge=1, description="default: the trainer's own, 250 in nnU-Net")
    val_iterations_per_epoch: int | None = Field(None, ge=1, description="default: the trainer's own, 50 in nnU-Net")
    save_every: int | None = Field(None, ge=1, description="epochs between checkpoints; default: nnU-Net's, 50")
    seed: int | None = Field(None, ge=0, lt=2**31, description="seeds weights and, with nnUNet_n_proc_DA=0, the data")
    cpu_bfloat16: bool = Field(False, description="short for cpu_speed: bfloat16_channels_last")
    cpu_speed: CpuSpeed | None = Field(
        None, description="how student and teachers compute on a CPU; default: float32, as nnU-Net does"
    )

    @field_validator("optimizer", mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @field_validator("stored_teacher")
    @classmethod
    def _absolute_folder(cls, name: str | None) -> str | None:
        if name is not None and not name.strip():
            raise ValueError("expected the name or folder of a store")
        return str(Path(name).expanduser().absolute()) if name is not None and len(Path(name).parts) > 1 else name

    @model_validator(mode="after")
    def _one_or_several_teachers(self) -> "Options":
        named = sorted({"teacher", "teachers"} & self.model_fields_set)
        if self.stored_teacher is not None and named:
            raise ValueError(f"a stored teacher is not run: remove {' and '.join(named)}, or stored_teacher")
        if self.stored_teacher is not None and self.combine != CombineOptions():
            raise ValueError("a store of several teachers is their mean: remove combine, or stored_teacher")
        if self.teachers is None:
            if "combine" in self.model_fields_set and self.combine != CombineOptions():
                raise ValueError("combine says how several teachers are combined; name them under teachers")
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

    def speed_on_cpu(self) -> CpuSpeed:
        return self.cpu_speed or ("bfloat16_channels_last" if self.cpu_bfloat16 else "float32")

    def all_teachers(self) -> tuple[TeacherOptions, ...]:
        """The one teacher, or the several."""
        return self.teachers or (self.teacher,)


def parse_budget(value: Any) -> tuple[float, bool]:
    """A size such as ``"0.5M"``, ``"20G"`` or ``0.1``.

    Returns:
        The number, and whether it is a fraction of the teacher's size (a bare number up to 1) and not a count.

    Raises:
        ValueError: where it is neither.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([kKmMgGtT]?)\s*", str(value))
    if match is None or float(match[1]) <= 0:
        raise ValueError(f'expected a size such as "0.5M" or a fraction such as "0.1", found {value!r}')
    number = float(match[1]) * {"": 1, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}[match[2].lower()]
    return number, match[2] == "" and number <= 1


def options_file() -> Path | None:
    """The file that ``nnUNet_kd_config`` names, or None where the variable is not set."""
    name = os.environ.get(VARIABLE, "").strip()
    return Path(name).expanduser() if name else None


def read_options_file(path: Path) -> dict[str, Any]:
    """Top-level keys of an options file.

    Raises:
        KDError: where it is missing, not YAML, or not a mapping.
    """
    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise KDError(f"{VARIABLE} names the options file {path}, which cannot be read: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise KDError(f"The options file {path} is not valid YAML: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise KDError(f"The options file {path} must hold keys such as 'terms:', found {type(content).__name__}.")
    return content


def resolve_options(defaults: Mapping[str, Any], plans: Mapping[str, Any], file: Path | None = None) -> Options:
    """Options of a training: file before plans before defaults, per top-level key.

    Args:
        defaults: the trainer's.
        plans: the plans, whose key ``"kd"`` may hold options.
        file: an options file, or None.

    Raises:
        KDError: lists every problem at once, with where it is.
    """
    from_plans = plans.get("kd", {})
    if not isinstance(from_plans, Mapping):
        raise KDError(f"The key 'kd' of the plans must hold options, found {type(from_plans).__name__}.")
    from_file = read_options_file(file) if file is not None else {}
    merged = {**defaults, **from_plans, **from_file}
    try:
        return Options.model_validate(merged)
    except ValidationError as error:
        sources = [str(file) if file else "", "the plans' key 'kd'" if from_plans else ""]
        where = " and ".join(source for source in sources if source) or "the trainer's defaults"
        raise KDError(listing(f"The distillation options in {where} cannot be used:", problems_of(error))) from error


def problems_of(error: ValidationError) -> list[str]:
    """One line per problem: where, what, and what was found there."""
    return [
        f"{'.'.join(str(part) for part in problem['loc']) or 'options'}: {problem['msg']}"
        + ("" if isinstance(problem["input"], dict) else f" (found {problem['input']!r})")
        for problem in error.errors()
    ]
