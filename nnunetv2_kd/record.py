"""Where a student comes from: written into its checkpoint and beside it, and read from there.

A record is made of plain values (`as_dict`), so that a checkpoint with one can be read where this package is not.
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

# what a later version adds is left out, so that its records can be read
_CONFIG = ConfigDict(extra="ignore")


@dataclass(frozen=True, config=_CONFIG)
class TeacherRecord:
    """Which model taught.

    Attributes:
        folder, fold, checkpoint: where it was; `checkpoint` is a file's name.
        sha256: of the checkpoint; empty for a teacher that was trained beside the student.
        trainer: the class that trained it.
        epoch: how many epochs it was trained for; None: its checkpoint does not say.
        params: its parameters.
        seen_validation_cases: how many of the student's validation cases it was trained on; None: not known.
        mirrored_axes: of its patches, along which it was mirrored in training (nnU-Net's
            ``inference_allowed_mirroring_axes``); None: not recorded, or those of a student beside which it learned.
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
        command: the line that wrote it.
        mirroring: axes over which its predictions are averaged; empty: not mirrored.
        largest_error: of a stored probability, in [0, 1].
        training_dice: mean Dice of each class (or region) on the training cases; nan where no case has it.
    """

    folder: str
    command: str
    mirroring: tuple[int, ...]
    largest_error: float
    training_dice: tuple[float, ...]


@dataclass(frozen=True, config=_CONFIG)
class TeacherLabelsRecord:
    """Which of a student's cases have a teacher's labels and no person's.

    Attributes:
        cases: names of those in the training split.
        validation_cases: how many validation cases have them. A Dice on these is agreement with the teacher.
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
    """How a student's plans were made; their key ``kd_student``.

    Attributes:
        made_from: name of the plans that were shrunk.
        width: factor on the channels, by configuration.
        convs_per_stage: upper limit on convolutions (or blocks) per stage; None: as in the plans.
        features: channels per stage, by configuration, where they were given or picked one by one.
        latency: of a student picked by measured time: what was ``asked``, ``measured_ms``, and how.
        spacing: in mm, by configuration, of a student that is coarser than its teacher.
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
    """How a student was trained: all that may make it stronger than another, beside its teacher.

    Attributes:
        epochs: that the training ends after; a checkpoint's own ``current_epoch`` says how many it has behind it.
        iterations_per_epoch: training steps.
        batch_size: patches per step, of all processes together.
        cases: in the training split.
        optimizer: with its learning rate, schedule and warm-up; None in records of before this was written, as are
            all that follow.
        ema: decay of the running mean of the weights; None: there was none.
        patch_size: voxels.
        precision: how the student computed.
        augmentation: the nnU-Net trainer whose augmentation it was.
        initial_weights: ``random``, a file, or which model the student began as a part of.
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
    """Versions of what a student was trained with, and the device's name."""

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
        command: the line that trained it.
        options: all options, as in an options file.
        student: how its plans were made.
        teachers: that taught it, running or stored; empty for a student that was trained alone.
        stored: the store that it was trained from; None where its teachers ran.
        methods: name to where it comes from, of methods that are not this package's own.
        start: the model that the student began as a part of; None where it did not.
        previous_stage: of a cascade; None in older records too.
        teacher_labels: of a dataset in which a teacher labelled cases; None where people labelled all.
        training, environment: None in records of before these were written.
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
        """None in an old record where no option said so: then it was the number of the trainer's base class."""
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
    """A record from its plain values, whichever version wrote them.

    Args:
        values: of `Record.as_dict`.
        where: the file that they are from, for the message of an error.

    Raises:
        KDError: lists what cannot be understood.
    """
    try:
        return _RECORD.validate_python(values)
    except ValidationError as error:
        raise KDError(
            listing(f"{where} holds a record of its training that cannot be read:", problems_of(error))
        ) from error


def environment_on(device: str) -> EnvironmentRecord:
    """The versions that are installed here.

    Args:
        device: the name of the device that is trained on.
    """
    return EnvironmentRecord(platform.python_version(), version("torch"), version("nnunetv2"), device)
