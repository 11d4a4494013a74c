"""The workflow's config, typed and checked before anything runs."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError, model_validator

from nnunetv2_kd.choices import CpuSpeed
from nnunetv2_kd.config import CheckedOptions, OptimizerOptions, StudentOptions, problems_of
from nnunetv2_kd.errors import KDError, listing
from nnunetv2_kd.trainers.options import Options

# Trainers that need no trained teacher
ALONE, JOINT, STOCK = "nnUNetTrainerKDBaseline", "nnUNetTrainerJointKD", "nnUNetTrainer"


def _different(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if len(set(values)) != len(values):
        raise ValueError("the same value twice")
    return values


# Without underscores, so that names joined by underscores are as different as their parts
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9-]+$")]
Plans = Annotated[str, Field(pattern=r"^\w[\w.-]*$")]
Trainer = Annotated[str, Field(pattern=r"^[A-Za-z]\w*$")]


class Dataset(CheckedOptions):
    id: int = Field(ge=1, le=999)
    configuration: str = Field("3d_fullres", pattern=r"^\w+$")
    plans: Plans = "nnUNetPlans"

    @model_validator(mode="after")
    def _no_cascade(self) -> "Dataset":
        if "cascade" in self.configuration:
            raise ValueError(f"{self.configuration} needs models of another configuration first: train it by hand")
        return self


class Teacher(CheckedOptions):
    trainer: Trainer = STOCK
    plans: Plans | None = None
    fold: int | Literal["all"] | None = None
    options: Options | None = None

    @model_validator(mode="after")
    def _no_options_of_stock(self) -> "Teacher":
        if self.options is not None and self.trainer == STOCK:
            raise ValueError(f"{STOCK} reads no options; {ALONE} trains the same network and does")
        return self


class Method(CheckedOptions):
    trainer: Trainer
    options: Path | None = None
    teachers: Annotated[tuple[Name, ...], AfterValidator(_different)] | None = None

    @property
    def needs_teacher(self) -> bool:
        return re.sub(r"_\d+epochs?$", "", self.trainer) not in (ALONE, JOINT)


class Size(StudentOptions):
    batch_size: int | None = Field(None, ge=1)

    def flags(self) -> list[str]:
        """As ``nnUNetv2_kd plan`` takes them."""
        given = self.model_dump(exclude_none=True)
        return [part for key, value in given.items() for part in (f"--{key.replace('_', '-')}", str(value))]


class Training(CheckedOptions):
    epochs: int | None = Field(None, ge=1)
    iterations_per_epoch: int | None = Field(None, ge=1)
    val_iterations_per_epoch: int | None = Field(None, ge=1)
    save_every: int | None = Field(None, ge=1)
    optimizer: OptimizerOptions | None = None
    ema: float | None = Field(None, gt=0, lt=1)
    cpu_bfloat16: bool = False
    cpu_speed: CpuSpeed | None = None


class Job(CheckedOptions):
    threads: int = Field(8, ge=1)
    mem_mb: int = Field(32000, ge=1)
    runtime: int = Field(2880, ge=1)


class Jobs(CheckedOptions):
    preprocess: Job = Job()
    train: Job = Job()
    leaderboard: Job = Job()


class Config(CheckedOptions):
    output: Path
    datasets: tuple[Dataset, ...] = Field(min_length=1)
    teachers: dict[Name, Teacher] = Field(min_length=1)
    methods: dict[Name, Method] = Field(min_length=1)
    sizes: dict[Name, Size] = Field(min_length=1)
    folds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], AfterValidator(_different)] = Field(min_length=1)
    seeds: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**31)], ...], AfterValidator(_different)] = Field(
        min_length=1
    )
    device: Literal["cuda", "cpu", "mps"] = "cuda"
    training: Training = Training()
    retries: int = Field(1, ge=0)
    jobs: Jobs = Jobs()
    leaderboard: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _known_teachers(self) -> "Config":
        for name, method in self.methods.items():
            unknown = [teacher for teacher in method.teachers or () if teacher not in self.teachers]
            if unknown:
                raise ValueError(
                    f"methods.{name}.teachers names {', '.join(unknown)}; teachers has only {', '.join(self.teachers)}"
                )
        return self


def check_config(config: Mapping[str, Any]) -> Config:
    """
    Raises:
        KDError: lists every unknown key and wrong value, with where it is.
    """
    try:
        return Config.model_validate(dict(config))
    except ValidationError as error:
        raise KDError(listing("The workflow's config cannot be used:", problems_of(error))) from error
