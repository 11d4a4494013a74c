"""What a trainer says and writes down about its student and its teachers."""

import json
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from batchgenerators.utilities.file_and_folder_operations import join
from torch import Tensor, nn

from nnunetv2_kd import __version__, speed
from nnunetv2_kd.config import Options
from nnunetv2_kd.features import plain_network
from nnunetv2_kd.labels import Labels
from nnunetv2_kd.store.teacher import StoredTeacher
from nnunetv2_kd.students import count_params
from nnunetv2_kd.teachers import Answer, Teacher, TeacherRecord
from nnunetv2_kd.trainers.checkpoint import OPTIONS_FILE, RECORD_FILE, base_trainer
from nnunetv2_kd.trainers.conditions import training_conditions
from nnunetv2_kd.trainers.messages import about_pseudo_dice, about_stored, about_student, about_teacher
from nnunetv2_kd.trainers.pseudo_dice import pseudo_dice

if TYPE_CHECKING:
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer as Base
else:
    Base = object

TEACHER_CHECK_BATCHES = 5


class ReportMixin(Base):
    """The log's lines, and the files beside the checkpoints."""

    options: Options
    teachers: list[Teacher]
    stored: StoredTeacher | None
    _splits: Callable[[], list[dict[str, list[str]]]]
    _ask: Callable[[Teacher, Tensor], Answer]

    @property
    def _cpu_speed(self) -> speed.CpuSpeed:
        """How networks compute; what the options ask for in vain is nnU-Net's own way."""
        wanted = self.options.speed_on_cpu()
        is_lacking = speed.is_bfloat16(wanted) and not speed.cpu_has_bfloat16()
        return speed.STOCK if self.device.type != "cpu" or is_lacking else wanted

    def _speed_up(self, network: nn.Module, name: str, trained: bool) -> None:
        if self._cpu_speed != speed.STOCK:
            shape = (self.batch_size, self.num_input_channels, *self.configuration_manager.patch_size)
            self._say(f"The {name} computes in {speed.speed_up(network, self._cpu_speed, shape, trained)}.")

    def _record(self) -> dict[str, Any]:
        """Where this student comes from, in plain values."""
        return {
            "nnunetv2_kd": __version__,
            "trainer": type(self).__name__,
            "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
            "options": self.options.model_dump(mode="json"),
            "training": training_conditions(self, base_trainer(type(self)), self._cpu_speed),
            "student": self.plans_manager.plans["kd_student"],
            "teachers": [teacher.as_dict() for teacher in self._teacher_records()],
            **({"stored": self.stored.as_dict(self.do_split()[0])} if self.stored is not None else {}),
        }

    def _teacher_records(self) -> list[TeacherRecord]:
        """Of the teachers, whether they run or are stored."""
        if self.stored is None:
            return [teacher.record for teacher in self.teachers]
        return self.stored.records(self._splits(), self.fold, self.do_split()[1])

    def _write_record(self) -> None:
        if self.local_rank != 0:
            return
        record = self._record()
        Path(join(self.output_folder, RECORD_FILE)).write_text(json.dumps(record, indent=2) + "\n")
        options = yaml.safe_dump(self.options.model_dump(mode="json", exclude_unset=True), sort_keys=False)
        Path(join(self.output_folder, OPTIONS_FILE)).write_text(options)

    def _say(self, *lines: str) -> None:
        for line in lines:
            self.print_to_log_file(line, also_print_to_console=self.local_rank == 0)

    def _say_student(self, made_here: bool) -> None:
        self._say(about_student(self.plans_manager.plans, self.configuration_name, self.dataset_json, made_here))
        wanted = self.options.speed_on_cpu()
        if wanted != self._cpu_speed:
            lacking = " with bfloat16 instructions" if self.device.type == "cpu" else ""
            self._say(f"The options ask for {wanted}, but this is no CPU{lacking}: training as nnU-Net does.")

    def _say_teachers(self, labels: Labels) -> None:
        student_params = count_params(plain_network(self.network))
        if self.stored is not None:
            stored = self.stored.as_dict(self.do_split()[0])
            self._say(*about_stored(stored, self._teacher_records(), student_params, self.fold))
        for teacher in self.teachers:
            self._say(*about_teacher(teacher, student_params, self.fold))
        if self.options.combine.rule != "mean" and labels.ignore_label is not None:
            self._say(
                f"Where a voxel has the ignore label, no label says which teacher is right: there the rule "
                f"'{self.options.combine.rule}' falls back to the teachers' mean."
            )

    def _say_pseudo_dice(self, labels: Labels) -> None:
        for number, teacher in enumerate(self.teachers, start=1):
            dice = pseudo_dice(self._answers_of(teacher), labels)
            name = f"teacher {number}" if len(self.teachers) > 1 else "teacher"
            self._say(*about_pseudo_dice(name, dice, TEACHER_CHECK_BATCHES))

    def _answers_of(self, teacher: Teacher) -> Iterator[tuple[Tensor, Tensor]]:
        """Its finest logits and the targets of a few validation batches."""
        for _ in range(TEACHER_CHECK_BATCHES):
            batch = next(self.dataloader_val)
            target = batch["target"][0] if isinstance(batch["target"], list) else batch["target"]
            yield self._ask(teacher, batch["data"].to(self.device)).logits[0], target.to(self.device)
