"""The record of where a student comes from, stored in its checkpoint and in a file beside it.

A record is stored as plain values (`as_dict`), so that its checkpoint can be loaded without this package.
"""

import json
import platform
from collections.abc import Mapping
from dataclasses import field
from importlib.metadata import version
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from nnunetv2_kd.config import problems_of
from nnunetv2_kd.errors import KDError, listing
from nnunetv2_kd.formatting import format_count

# keys added by a later version are ignored, so that its records can be read
_CONFIG = ConfigDict(extra="ignore")


@dataclass(frozen=True, config=_CONFIG)
class TeacherRecord:
    """A model that taught a student.

    Attributes:
        folder, fold, checkpoint: where it was; `checkpoint` is a file name.
        sha256: of the checkpoint; empty for a teacher that was trained beside the student.
        trainer: the class that trained it.
        epoch: how many epochs it was trained for; None: its checkpoint does not say.
        params: number of its parameters.
        seen_validation_cases: how many of the student's validation cases it was trained on; None: not known.
        mirrored_axes: axes along which its training mirrored patches (nnU-Net's ``inference_allowed_mirroring_axes``);
            None: not recorded, or the student's own, because it was trained beside the student.
    """

    folder: str
    fold: str
    checkpoint: str
    sha256: str
    trainer: str
    epoch: int | None
    params: int
    seen_validation_cases: int | None
    mirrored_axes: tuple[int, ...] | None = None

    def __str__(self) -> str:
        epochs = "an unknown number of" if self.epoch is None else self.epoch
        return (
            f"{self.folder}, fold {self.fold}, {self.checkpoint} (SHA-256 {self.sha256}), trained by {self.trainer} "
            f"for {epochs} epochs, {format_count(self.params)} parameters"
        )


@dataclass(frozen=True, config=_CONFIG)
class StoredTeacherRecord:
    """The store that a student was trained from.

    Attributes:
        folder: where it was.
        command: the command that wrote it.
        mirroring: axes over which its predictions are averaged; empty: not mirrored.
        largest_error: largest quantization error of a stored probability, in [0, 1].
        training_dice: mean Dice of each class (or region) on the training cases; nan if no case contains it.
    """

    folder: str
    command: str
    mirroring: tuple[int, ...]
    largest_error: float
    training_dice: tuple[float, ...]


@dataclass(frozen=True, config=_CONFIG)
class TeacherLabelsRecord:
    """Which of a student's cases were labelled by teachers instead of people.

    Attributes:
        cases: names of such cases in the training split.
        validation_cases: number of such validation cases. Dice on these is agreement with the teacher.
        teachers: the models that labelled.
    """

    cases: tuple[str, ...]
    validation_cases: int
    teachers: tuple[TeacherRecord, ...]


@dataclass(frozen=True, config=_CONFIG)
class PreviousStageRecord:
    """The previous stage's segmentations that a cascade was trained on.

    Attributes:
        folder: where they were.
        sha256: of those of the fold's cases.
    """

    folder: str
    sha256: str


@dataclass(frozen=True, config=_CONFIG)
class ShrinkRecord:
    """How a student's plans were made; stored in the plans under the key ``kd_student``.

    Attributes:
        made_from: name of the plans that were shrunk.
        width: factor on the channels, by configuration.
        convs_per_stage: upper limit on convolutions (or blocks) per stage; None: as in the plans.
        features: channels per stage, by configuration, if they were given or picked individually.
        latency: for a student picked by measured time: the budget ``asked``, ``measured_ms``, and how it was measured.
        spacing: in mm, by configuration, for a student that is coarser than its teacher.
    """

    made_from: str
    width: dict[str, float]
    convs_per_stage: int | None = None
    features: dict[str, list[int]] | None = None
    latency: dict[str, Any] | None = None
    spacing: dict[str, list[float]] | None = None


def is_coarser(plans: Mapping[str, Any]) -> bool:
    """Whether plans are those of a student that is coarser than its teacher."""
    return bool((plans.get("kd_student") or {}).get("spacing"))


@dataclass(frozen=True, config=_CONFIG)
class TrainingRecord:
    """How a student was trained: everything, other than its teacher, that may make it stronger than another.

    Attributes:
        epochs: planned number of epochs; a checkpoint's ``current_epoch`` says how many are done.
        iterations_per_epoch: training steps.
        batch_size: patches per step, of all processes together.
        cases: number of cases in the training split.
        optimizer: with its learning rate, schedule and warm-up. This and all following attributes are None in records
            from before they were added.
        ema: decay of the running mean of the weights; None: there was none.
        patch_size: voxels.
        precision: how the student computed.
        augmentation: the nnU-Net trainer whose augmentation was used.
        initial_weights: ``random``, a file, or the model that the student started as a part of.
        early_stopping: epochs of patience; None: there was none.
        mirroring: axes of a patch along which it was mirrored, in training and in prediction; None: not recorded.
    """

    epochs: int
    iterations_per_epoch: int
    batch_size: int
    cases: int
    optimizer: dict[str, Any] | None = None
    ema: float | None = None
    patch_size: tuple[int, ...] | None = None
    precision: str | None = None
    augmentation: str | None = None
    initial_weights: str | None = None
    early_stopping: int | None = None
    mirroring: tuple[int, ...] | None = None


@dataclass(frozen=True, config=_CONFIG)
class EnvironmentRecord:
    """Versions of the software that a student was trained with, and the device's name."""

    python: str
    torch: str
    nnunetv2: str
    device: str


@dataclass(frozen=True, config=_CONFIG)
class Record:
    """Where a student comes from.

    Attributes:
        nnunetv2_kd: version of this package.
        trainer: what ``-tr`` named.
        command: the command that trained it.
        options: all options, as in an options file.
        student: how its plans were made.
        teachers: its teachers, running or stored; empty for a student that was trained alone.
        stored: the store that it was trained from; None if its teachers ran.
        methods: where each method that is not this package's own comes from, by name.
        start: the model that the student started as a part of; None if it started from other weights.
        previous_stage: of a cascade; also None in older records.
        teacher_labels: the cases that teachers labelled; None if people labelled all.
        training, environment: None in records from before they were added.
    """

    nnunetv2_kd: str
    trainer: str
    command: str
    options: dict[str, Any]
    student: ShrinkRecord
    teachers: tuple[TeacherRecord, ...] = ()
    stored: StoredTeacherRecord | None = None
    methods: dict[str, str] = field(default_factory=dict)
    training: TrainingRecord | None = None
    environment: EnvironmentRecord | None = None
    teacher_labels: TeacherLabelsRecord | None = None
    start: TeacherRecord | None = None
    previous_stage: PreviousStageRecord | None = None

    @property
    def iterations_per_epoch(self) -> int | None:
        """Iterations per epoch; None in an old record without this option, whose trainer used nnU-Net's number."""
        return self.training.iterations_per_epoch if self.training else self.options.get("iterations_per_epoch")

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for a checkpoint and for `read_record`."""
        values: dict[str, Any] = _RECORD.dump_python(self, mode="json")
        return values

    def as_json(self) -> str:
        """The content of a record file."""
        return json.dumps(self.as_dict(), indent=2) + "\n"


_RECORD = TypeAdapter(Record)


def read_record(values: Mapping[str, Any], where: str) -> Record:
    """Read a record from its plain values, written by any version.

    Args:
        values: from `Record.as_dict`.
        where: the file that holds them, for error messages.

    Raises:
        KDError: lists what cannot be read.
    """
    try:
        return _RECORD.validate_python(values)
    except ValidationError as error:
        raise KDError(
            listing(f"{where} holds a record of its training that cannot be read:", problems_of(error))
        ) from error


def environment_on(device: str) -> EnvironmentRecord:
    """The installed versions.

    Args:
        device: the name of the device used for training.
    """
    return EnvironmentRecord(platform.python_version(), version("torch"), version("nnunetv2"), device)
