"""A stored teacher answers to a batch."""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nnunetv2_kd.errors import KDError
from nnunetv2_kd.networks.stages import match_strides, stage_modules
from nnunetv2_kd.regions import Labels, at_grid, unit_vectors
from nnunetv2_kd.teachers.check import seen_validation_cases
from nnunetv2_kd.teachers.combine import as_logits
from nnunetv2_kd.teachers.stored import quantization
from nnunetv2_kd.teachers.stored.store import Store
from nnunetv2_kd.teachers.teacher import TeacherOutput, TeacherRecord


class StoredTeacher:
    """Answers from a store as a teacher, or several combined, would from the image.

    Args:
        store: checked, see `Store.check`.
        labels: how to read targets.
        image_channels: the network's; what a batch has beyond them is stored probabilities.
        device: of the answers.

    Attributes:
        stages: which stage's vectors of each teacher stand beside a stage of the student; filled by `match`.
    """

    def __init__(self, store: Store, labels: Labels, image_channels: int, device: torch.device) -> None:
        self.store = store
        self.labels = labels
        self.image_channels = image_channels
        self.device = device
        self.stages: dict[str, list[str]] = {}
        self._vectors: dict[str, dict[str, Tensor]] = {}

    @property
    def folder(self) -> Path:
        return self.store.folder

    @property
    def channels(self) -> int:
        """How many channels of a batch are stored probabilities."""
        return self.labels.num_heads - (not self.labels.has_regions)

    def records(
        self, splits: list[dict[str, list[str]]], fold: int | str, validation: list[str]
    ) -> list[TeacherRecord]:
        """The models that were stored, as if they taught themselves; see `load_teacher` for the arguments."""
        names = TeacherRecord.__dataclass_fields__.keys() - {"seen_validation_cases"}
        return [
            TeacherRecord(
                **{name: teacher[name] for name in names},
                seen_validation_cases=seen_validation_cases(splits, teacher["fold"], fold, validation),
            )
            for teacher in self.store.header["teachers"]
        ]

    def as_dict(self, cases: list[str]) -> dict[str, Any]:
        """Plain values on the store for the student's checkpoint.

        Args:
            cases: the training cases.
        """
        records = [self.store.cases[case] for case in cases]
        dice = [
            [value for value in of_class if value is not None]
            for of_class in zip(*(record["dice"] for record in records), strict=True)
        ]
        return {
            "folder": str(self.folder),
            "command": self.store.command,
            "mirroring": self.store.header["teachers"][0]["mirroring"],
            "largest_error": max(record["error"] for record in records),
            "training_dice": [sum(values) / len(values) if values else math.nan for values in dice],
        }

    def match(self, stages: list[str], student: nn.Module) -> list[str]:
        """Choose the vectors that are compared with the student's stages.

        Returns:
            The student's stages, spelt as `features.stage_modules` does.

        Raises:
            KDError: where a teacher has no stage of that stride.
        """
        if not stages:
            return []
        of_student = {name: stride for name, (_, stride) in stage_modules(student).items()}
        found: dict[str, list[str]] = {}
        for number, teacher in enumerate(self.store.header["teachers"]):
            if not teacher["stages"]:
                raise KDError(f"The store {self.folder} has no region vectors: its teacher is no U-Net with stages.")
            of_teacher = {name: tuple(stride) for name, stride in teacher["stages"].items()}
            for mine, others in match_strides(stages, of_student, of_teacher).items():
                found.setdefault(mine, []).append(f"{number}/{others}")
        self.stages = found
        return list(found)

    @torch.no_grad()
    def __call__(self, batch: dict[str, Any]) -> TeacherOutput:
        """Take the stored probabilities off the batch's ``data`` and make an answer of them.

        Heads below full resolution get area averages (ours).

        Raises:
            KDError: where the batch has none.
        """
        data = batch["data"].to(self.device, non_blocking=True)
        if data.shape[1] != self.image_channels + self.channels:
            raise KDError(
                f"Expected batches of {self.image_channels} image and {self.channels} stored channels, found "
                f"{data.shape[1]}. This trainer loads its data in a way of its own: train with the teacher itself."
            )
        batch["data"] = data[:, : self.image_channels].contiguous()
        finest = quantization.all_probabilities(data[:, self.image_channels :].float(), self.labels.has_regions)
        targets = batch["target"] if isinstance(batch["target"], list) else [batch["target"]]
        logits = [as_logits(at_grid(finest, target.shape[2:]), self.labels.has_regions) for target in targets]
        return TeacherOutput(logits, {}, {stage: self._edges(stage, batch["keys"]) for stage in self.stages})

    def _edges(self, stage: str, cases: Any) -> Tensor:
        """Cosines between the regions of these cases, mean over the teachers, see `region_graph`.

        A region that a case has and its patch has not is left out by the terms, which go by the patch's labels.
        """
        edges = []
        for name in self.stages[stage]:
            unit = unit_vectors(torch.cat([self._of(str(case))[name] for case in cases]), dim=1)
            edges.append(unit @ unit.T)
        return torch.stack(edges).mean(dim=0)

    def _of(self, case: str) -> dict[str, Tensor]:
        if case not in self._vectors:
            wanted = {name for names in self.stages.values() for name in names}
            arrays = self.store.vectors(case)
            self._vectors[case] = {name: torch.from_numpy(arrays[name]).to(self.device) for name in wanted}
        return self._vectors[case]
