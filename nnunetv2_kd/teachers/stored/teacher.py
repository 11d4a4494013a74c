"""A stored teacher: its output for a batch is loaded with the batch."""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nnunetv2_kd.config import TeacherOptions
from nnunetv2_kd.errors import KDError
from nnunetv2_kd.methods import Methods, methods_needing_features, tapped_stages
from nnunetv2_kd.networks.stages import match_strides, nearest_strides, stage_modules
from nnunetv2_kd.record import StoredTeacherRecord, TeacherRecord
from nnunetv2_kd.regions import Labels, at_grid, unit_vectors
from nnunetv2_kd.teachers.combine import as_logits
from nnunetv2_kd.teachers.label_map import structures_of
from nnunetv2_kd.teachers.pseudo_dice import describe_dice
from nnunetv2_kd.teachers.seen import TrainingCases
from nnunetv2_kd.teachers.stored import quantization
from nnunetv2_kd.teachers.stored.loading import StoredDataset, StoredTransforms
from nnunetv2_kd.teachers.stored.store import Store
from nnunetv2_kd.teachers.teacher import Batch, Teacher, TeacherOutput, methods_on_region_cosines


class StoredTeacher(Teacher):
    """Reads the output of a teacher, or of several combined, from a store.

    Args:
        store: checked, see `Store.check`.
        records: of the stored models, see `stored_records`.
        cases: the training cases.
        labels: how to read targets.
        image_channels: the network's input channels; all further channels of a batch are stored probabilities.
        device: of the output.
    """

    def __init__(
        self,
        store: Store,
        records: list[TeacherRecord],
        cases: list[str],
        labels: Labels,
        image_channels: int,
        device: torch.device,
    ) -> None:
        self.store = store
        self.labels = labels
        self.image_channels = image_channels
        self.device = device
        # for each stage of the student, the stored vectors of every teacher that it is compared with
        self.stages: dict[str, list[str]] = {}
        self.known = _known_heads(store, labels)
        self._records = records
        self._cases = cases
        self._vectors: dict[str, dict[str, Tensor]] = {}

    @property
    def channels(self) -> int:
        """How many channels of a batch are stored probabilities."""
        return self.labels.num_heads - (not self.labels.has_regions) if self.known is None else len(self.known)

    def records(self) -> list[TeacherRecord]:
        return self._records

    def stored_record(self) -> StoredTeacherRecord:
        records = [self.store.cases[case] for case in self._cases]
        dice = [
            [value for value in of_class if value is not None]
            for of_class in zip(*(record["dice"] for record in records), strict=True)
        ]
        return StoredTeacherRecord(
            folder=str(self.store.folder),
            command=self.store.command,
            mirroring=tuple(self.store.header["teachers"][0]["mirroring"]),
            largest_error=max(record["error"] for record in records),
            training_dice=tuple(sum(values) / len(values) if values else math.nan for values in dice),
        )

    def describe(self) -> list[str]:
        stored, count = self.stored_record(), len(self._records)
        return [
            f"Stored teacher: {stored.folder}, {count} model{'s' if count > 1 else ''}, "
            f"{'mirrored' if stored.mirroring else 'not mirrored'}; "
            f"largest quantization error of a probability {stored.largest_error:.4f}",
            *(f"  {record}" for record in self._records),
            *self._what_is_known(),
            *describe_dice("The stored teacher's Dice on the training cases", stored.training_dice),
        ]

    def _what_is_known(self) -> list[str]:
        if self.known is None:
            return []
        names = structures_of(self.store.label_definition).names
        heads = [head - (not self.labels.has_regions) for head in self.known]
        return [
            f"  It knows {', '.join(names[head] for head in heads)}. To the distillation terms, everything else is one "
            "class; the student learns to tell that apart from its own labels."
        ]

    def attach(self, student: nn.Module, methods: Methods) -> list[str]:
        raw = methods_needing_features(methods)
        if raw:
            raise KDError(
                f"{', '.join(raw)} compares features, which are not stored. A store supports all terms on logits, "
                f"{methods_on_region_cosines()}. Set the weight to 0, or remove stored_teacher from the options to "
                "let the teacher run during training."
            )
        self.stages = self._match(tapped_stages(methods), student)
        return list(self.stages)

    def _match(self, stages: list[str], student: nn.Module) -> dict[str, list[str]]:
        """The stored vectors to compare with each of the student's stages, one per stored model."""
        if not stages:
            return {}
        of_student = {name: stride for name, (_, stride) in stage_modules(student).items()}
        found: dict[str, list[str]] = {}
        for number, teacher in enumerate(self.store.header["teachers"]):
            if not teacher["stages"]:
                raise KDError(
                    f"The store {self.store.folder} has no region vectors: its teacher is not a U-Net with stages."
                )
            of_teacher = {name: tuple(stride) for name, stride in teacher["stages"].items()}
            match = nearest_strides if "differs" in teacher else match_strides
            for mine, others in match(stages, of_student, of_teacher).items():
                found.setdefault(mine, []).append(f"{number}/{others}")
        return found

    def training_dataset(self, dataset: Any) -> Any:
        return StoredDataset(dataset, self.store.folder)

    def training_transforms(self, transforms: Any) -> Any:
        return StoredTransforms(transforms, self.channels)

    @torch.no_grad()
    def __call__(self, batch: Batch) -> TeacherOutput:
        """Remove the stored probabilities from the batch's ``data`` and turn them into logits.

        Heads below full resolution get area averages (ours).

        Raises:
            KDError: if the batch has none.
        """
        finest = quantization.all_probabilities(self._take(batch).float(), self.labels.has_regions)
        targets = batch["target"] if isinstance(batch["target"], list) else [batch["target"]]
        logits = [as_logits(at_grid(finest, target.shape[2:]), self.labels.has_regions) for target in targets]
        edges = {stage: self._edges(stage, batch["keys"]) for stage in self.stages}
        return TeacherOutput(logits, {}, edges, self.known)

    def skip(self, batch: Batch) -> None:
        self._take(batch)

    def _take(self, batch: Batch) -> Tensor:
        """Take the stored probabilities ``(B, R, *S)`` out of the batch."""
        data: Tensor = batch["data"].to(self.device, non_blocking=True)
        if data.shape[1] != self.image_channels + self.channels:
            raise KDError(
                f"Expected batches of {self.image_channels} image and {self.channels} stored channels, found "
                f"{data.shape[1]}. This trainer has its own way to load data: train with the teacher itself."
            )
        batch["data"] = data[:, : self.image_channels].contiguous()
        return data[:, self.image_channels :]

    def _edges(self, stage: str, cases: Any) -> Tensor:
        """Cosines between the regions of these cases, averaged over the teachers that know both, see `region_graph`;
        nan where no teacher does.

        The terms leave out regions of a case that are not in its patch, because they use the patch's labels.
        """
        edges, weights = [], []
        for name in self.stages[stage]:
            unit = unit_vectors(torch.cat([self._of(str(case))[name] for case in cases]), dim=1)
            knows = self._root_weights(int(name.split("/")[0]), len(unit) // len(cases)).repeat(len(cases))
            edges.append(unit @ unit.T)
            weights.append(knows.outer(knows))
        weight = torch.stack(weights)
        return (torch.stack(edges) * weight).sum(dim=0) / weight.sum(dim=0)

    def _root_weights(self, number: int, regions: int) -> Tensor:
        """Square root of a teacher's weight for every region; 0 for regions that it does not know. All
        know the background."""
        teacher = self.store.header["teachers"][number]
        all_known = range(regions - 1) if self.known is None else self.store.header["known"]
        known = [True, *(structure in teacher.get("known", all_known) for structure in all_known)]
        # a pair's weight is the product of its two regions'
        return torch.tensor(known, device=self.device) * float(teacher.get("weight", 1.0)) ** 0.5

    def _of(self, case: str) -> dict[str, Tensor]:
        if case not in self._vectors:
            wanted = {name for names in self.stages.values() for name in names}
            arrays = self.store.vectors(case)
            self._vectors[case] = {name: torch.from_numpy(arrays[name]).to(self.device) for name in wanted}
        return self._vectors[case]


def first_stored(store: Store) -> TeacherOptions:
    """Options that name the first of a store's teachers at the place where it was when it was stored."""
    teacher = store.header["teachers"][0]
    fold = teacher["fold"]
    return TeacherOptions(
        folder=Path(teacher["folder"]), fold="all" if fold == "all" else int(fold), checkpoint=teacher["checkpoint"]
    )


def _known_heads(store: Store, labels: Labels) -> tuple[int, ...] | None:
    """The student's heads that any of the stored teachers knows; None if that is all of them."""
    known = store.header.get("known")
    return None if known is None else tuple(structure + (not labels.has_regions) for structure in known)


def stored_records(store: Store, dataset: str, validation: list[str]) -> list[TeacherRecord]:
    """The records of the stored models, as if these ran during training.

    Args:
        store: the store that holds them.
        dataset: full name of the student's dataset.
        validation: the student's validation cases.
    """
    names = TeacherRecord.__dataclass_fields__.keys() - {"seen_validation_cases", "mirrored_axes"}
    return [
        TeacherRecord(
            **{name: teacher[name] for name in names},
            seen_validation_cases=_seen(teacher, dataset, validation),
            mirrored_axes=teacher.get("mirrored_axes"),  # not recorded in older stores
        )
        for teacher in store.header["teachers"]
    ]


def _seen(teacher: dict[str, Any], dataset: str, validation: list[str]) -> int | None:
    """How many validation cases a teacher was trained on; None for an older store, which does not record it."""
    cases = teacher.get("training_cases")
    if cases is None:
        return None
    return TrainingCases.from_dict(cases).seen(dataset, validation)
