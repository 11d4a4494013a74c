"""The interface of every teacher: called with a batch, it returns its output, or None if it has none yet."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from nnunetv2_kd.methods import OWN_METHODS, Methods
from nnunetv2_kd.record import StoredTeacherRecord, TeacherRecord

Batch = dict[str, Any]  # nnU-Net's: "data" (B, C, *S), "target" per head or a single one, "keys" the cases' names


@dataclass
class TeacherOutput:
    """The output of a teacher, or of several combined, for a batch.

    Attributes:
        logits: ``(B, K, *S)`` of every trained head, finest first; empty if no method needs them and the teacher's
            decoder did not run.
        features: of the stages given to `Teacher.attach`, by the student's stage names; empty for several teachers
            combined or a stored one.
        edges: cosines between all regions of the batch ``(B*K, B*K)`` by stage, if there are no features; nan between
            two regions that no single teacher knows.
        known: the student's heads that the teacher knows, without the background's. Logits and regions are then merged
            as by `Known`. None: all heads.
    """

    logits: list[Tensor]
    features: dict[str, Tensor] = field(default_factory=dict)
    edges: dict[str, Tensor] = field(default_factory=dict)
    known: tuple[int, ...] | None = None


class Teacher(ABC):
    """One interface for a running network, an ensemble, a stored teacher, and one that is trained with its student.

    Deliberately not an nn.Module, so that nothing that walks over a trainer's modules can train, wrap or save it.
    """

    @abstractmethod
    def attach(self, student: nn.Module, methods: Methods) -> list[str]:
        """Prepare what the methods need. Called once, before the first batch.

        Args:
            student: the network to teach, neither compiled nor wrapped.
            methods: with stages as `resolve_stages` spells them.

        Returns:
            The student's stages whose features the methods compare.

        Raises:
            KDError: if a method needs something that this kind of teacher cannot give, or a stage that it lacks.
        """

    @abstractmethod
    def __call__(self, batch: Batch) -> TeacherOutput | None:
        """The output for a batch, whose tensors are moved to the device; None if there is no output yet."""

    @abstractmethod
    def records(self) -> list[TeacherRecord]:
        """The models that teach."""

    @abstractmethod
    def describe(self) -> list[str]:
        """Lines for the log."""

    def stored_record(self) -> StoredTeacherRecord | None:
        """The store that the teacher is read from; None if it runs."""
        return None

    def stage_channels(self) -> dict[str, int]:
        """Channels of the attached stages, by the student's stage names; empty if no features are compared."""
        return {}

    def compile(self) -> None:
        """Compile what runs at every step; called after `attach`."""

    # mean pseudo Dice on validation batches, in [0, 1], or what is nearest to it; None: not known
    dice: float | None = None

    def assess(self, batches: Callable[[], Iterable[Batch]]) -> list[str]:
        """Lines for the log that say how good the teacher is on a few validation batches."""
        return []

    def skip(self, batch: Batch) -> None:
        """In a step without distillation, restore a batch to what it would be without a teacher."""

    def shares(self) -> Mapping[str, Tensor]:
        """How much each of several teachers counted in the last batch, by name."""
        return {}

    # ---- for a stored teacher, which is loaded with the data

    def training_dataset(self, dataset: Any) -> Any:
        """nnU-Net's dataset of the training cases, with what the teacher adds to the images."""
        return dataset

    def training_transforms(self, transforms: Any) -> Any:
        """nnU-Net's training transforms, also applied to what the teacher added."""
        return transforms

    # ---- for a teacher that is trained with its student

    def start_epoch(self, epoch: int) -> None:
        """Called when a training epoch begins."""

    def learn(self, batch: Batch) -> None:
        """One training step of the teacher's own, before the student's on the same batch."""

    def start_validation(self) -> None:
        """Called when the validation of an epoch begins."""

    def validate(self, batch: Batch) -> None:
        """Evaluate a validation batch, without changing it."""

    def end_epoch(self, epoch: int) -> list[str]:
        """Called when an epoch ends; returns lines for the log."""
        return []

    def training_state(self) -> dict[str, Any]:
        """Tensors and plain values needed to resume the training."""
        return {}


def methods_on_region_cosines() -> str:
    """The methods on features that work with every kind of teacher, as words for a message."""
    return " and ".join(m.name for m in OWN_METHODS if m.needs.region_cosines and not m.needs.features)
