"""Training from a stored teacher instead of running it."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from nnunetv2_kd.errors import KDError
from nnunetv2_kd.methods.options import FeatureTerm, Term
from nnunetv2_kd.networks.stages import match_stages
from nnunetv2_kd.regions import Labels
from nnunetv2_kd.teachers.stored.loading import StoredDataset, StoredTransforms
from nnunetv2_kd.teachers.stored.store import Store, store_folder
from nnunetv2_kd.teachers.stored.teacher import StoredTeacher
from nnunetv2_kd.teachers.teacher import Teacher
from nnunetv2_kd.trainers.options import Options
from nnunetv2_kd.trainers.terms import FROM_SEVERAL_TEACHERS, build_adapters, tapped_stages

if TYPE_CHECKING:
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer as Base
else:
    Base = object


class StoredMixin(Base):
    """What a trainer does otherwise where its teacher is stored."""

    options: Options
    teachers: list[Teacher]
    stored: StoredTeacher | None = None

    @property
    def _has_teacher(self) -> bool:
        return bool(self.teachers) or self.stored is not None

    def _open_store(self, labels: Labels) -> StoredTeacher:
        """The store that the options name, checked against the data at hand."""
        if self.is_cascaded:
            raise KDError("stored_teacher cannot be used in a cascade: let the teacher run during the training.")
        data = Path(self.preprocessed_dataset_folder)
        store = Store(store_folder(data.parent, data.name, str(self.options.stored_teacher)))
        store.check(data, (labels.num_heads, labels.has_regions), self.dataset_json, self.do_split()[0])
        return StoredTeacher(store, labels, self.num_input_channels, self.device)

    def _tap_teachers(self, terms: dict[str, Term], student: nn.Module) -> tuple[list[str], nn.ModuleDict]:
        """Let the teachers keep the features that the terms look at.

        Returns:
            The student's stages to tap, and the terms' trained parts.
        """
        tapped = tapped_stages(terms)
        if self.stored is not None:
            check_stored_terms(terms)
            return self.stored.match(tapped, student), nn.ModuleDict()
        stages: dict[str, str] = {}
        for teacher in self.teachers:
            stages = match_stages(tapped, student, teacher.network) if tapped else {}
            teacher.tap(stages)
        dims = len(self.configuration_manager.patch_size)
        adapters = build_adapters(terms, student, self.teachers[0].network, stages, dims)
        return list(stages), adapters.to(self.device)

    def get_tr_and_val_datasets(self) -> tuple[Any, Any]:
        training, validation = super().get_tr_and_val_datasets()
        if self.stored is not None:
            training = StoredDataset(training, self.stored.folder)
        return training, validation

    def get_dataloaders(self) -> tuple[Any, Any]:
        stored = self.stored
        if stored is None:
            return super().get_dataloaders()
        plain: Callable[..., Any] = self.get_training_transforms
        # nnU-Net's is a static method, which trainers call on their classes too: only this instance's is replaced
        self.__dict__["get_training_transforms"] = lambda *args, **kwargs: StoredTransforms(
            plain(*args, **kwargs), stored.channels
        )
        try:
            return super().get_dataloaders()
        finally:
            del self.__dict__["get_training_transforms"]


def check_stored_terms(terms: dict[str, Term]) -> None:
    """The terms need of a teacher what a store holds.

    Raises:
        KDError: names those that do not.
    """
    raw = [name for name, term in terms.items() if isinstance(term, FeatureTerm) and name not in FROM_SEVERAL_TEACHERS]
    if raw:
        raise KDError(
            f"{', '.join(raw)} compares features, which are not stored. From a store work all terms on logits, "
            f"{' and '.join(FROM_SEVERAL_TEACHERS)}. Set the weight to 0, or remove stored_teacher from the options to "
            "let the teacher run during the training."
        )
