"""What every teacher is to a training: called with a batch, it returns its output, or None where it has none yet."""

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
    """What a teacher, or several combined, says about a batch.

    Attributes:
        logits: ``(B, K, *S)`` of every trained head, finest first; empty where nobody wants them and the teacher's
            decoder did not run.
        features: of the stages that `Teacher.attach` was asked for, by the student's names of them; empty where several
            teachers are combined, and of a stored one.
        edges: cosines between all regions of the batch ``(B*K, B*K)`` by stage, where there are no features; nan
            between regions that no teacher knows both of.
        known: the student's heads that the teacher knows, without that of the background; the logits are those of a
            `Known`, and so are the regions. None: all of them.
    """

    logits: list[Tensor]
    features: dict[str, Tensor] = field(default_factory=dict)
    edges: dict[str, Tensor] = field(default_factory=dict)
    known: tuple[int, ...] | None = None


class Teacher(ABC):
    """One protocol for a network that runs, an ensemble, a stored teacher, and one that learns beside its student.

    Not an nn.Module on purpose: nothing that walks over a trainer's modules can train it, wrap it or save it.
    """

    @abstractmethod
    def attach(self, student: nn.Module, methods: Methods) -> list[str]:
        """Make ready what the methods look at. Once, before the first call.

        Args:
            student: the network that is taught, neither compiled nor wrapped.
            methods: with stages as `resolve_stages` spells them.

        Returns:
            The student's stages whose features the methods compare.

        Raises:
            KDError: where a method asks for what this kind of teacher does not have, or for a stage that it lacks.
        """

    @abstractmethod
    def __call__(self, batch: Batch) -> TeacherOutput | None:
        """The output for a batch, whose tensors are moved to the device in passing; None where there is none yet."""

    @abstractmethod
    def records(self) -> list[TeacherRecord]:
        """The models that teach."""

    @abstractmethod
    def describe(self) -> list[str]:
        """Lines for the log."""

    def stored_record(self) -> StoredTeacherRecord | None:
        """The store that it is read from; None where it runs."""
        return None

    def stage_channels(self) -> dict[str, int]:
        """Width of the attached stages, by the student's names of them; none where features are not compared."""
        return {}

    def compile(self) -> None:
        """Let torch compile what runs at every step; after `attach`."""

    # mean pseudo Dice on validation batches, in [0, 1], or what is nearest to it; None: not known
    dice: float | None = None

    def assess(self, batches: Callable[[], Iterable[Batch]]) -> list[str]:
        """Lines for the log on how good the teacher is on a few validation batches."""
        return []

    def skip(self, batch: Batch) -> None:
        """Leave a batch as it would be without a teacher, in a step in which nobody is taught."""

    def shares(self) -> Mapping[str, Tensor]:
        """How much each of several teachers counted in the last batch, by name."""
        return {}

    # ---- a stored teacher comes in with the data

    def training_dataset(self, dataset: Any) -> Any:
        """nnU-Net's dataset of the training cases, with what the teacher adds to it."""
        return dataset

    def training_transforms(self, transforms: Any) -> Any:
        """nnU-Net's training transforms, applied to what the teacher added too."""
        return transforms

    # ---- a teacher that learns beside its student

    def start_epoch(self, epoch: int) -> None:
        """A training epoch begins."""

    def learn(self, batch: Batch) -> None:
        """One training step of the teacher's own, before the student's on the same batch."""

    def start_validation(self) -> None:
        """The validation of an epoch begins."""

    def validate(self, batch: Batch) -> None:
        """Look at a validation batch, which must be left as it is."""

    def end_epoch(self, epoch: int) -> list[str]:
        """An epoch ends; lines for the log."""
        return []

    def training_state(self) -> dict[str, Any]:
        """Tensors and plain values that a resumed training needs."""
        return {}


def methods_on_region_cosines() -> str:
    """The methods on features that every kind of teacher can teach, for a message."""
    return " and ".join(m.name for m in OWN_METHODS if m.needs.region_cosines and not m.needs.features)
