"""Distillation for any nnU-Net trainer: ``class Mine(DistillationMixin, nnUNetTrainerDA5)``."""

import json
import shlex
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import torch
import torch.distributed as dist
import yaml
from batchgenerators.utilities.file_and_folder_operations import join
from torch import Tensor
from tqdm import tqdm

from nnunetv2_kd import __version__
from nnunetv2_kd.config import Options, Terms, options_file, resolve_options
from nnunetv2_kd.errors import KDError
from nnunetv2_kd.features import Taps, match_stages, plain_network
from nnunetv2_kd.students import count_params, made_from, student_plans
from nnunetv2_kd.teachers import Student, Teacher, load_teacher
from nnunetv2_kd.teachers.find import dataset_id, teacher_folder
from nnunetv2_kd.trainers import environment
from nnunetv2_kd.trainers.cascade import check_previous_stage, previous_stage_folder
from nnunetv2_kd.trainers.checkpoint import (
    OPTIONS_FILE,
    RECORD_FILE,
    check_same_method,
    check_same_size,
    make_stock,
    stock_name,
)
from nnunetv2_kd.trainers.loss import DistillationLoss, Labels, tapped_stages, with_resolved_stages
from nnunetv2_kd.trainers.messages import about_pseudo_dice, about_student, about_teacher
from nnunetv2_kd.trainers.pseudo_dice import pseudo_dice
from nnunetv2_kd.trainers.schedule import factor_at
from nnunetv2_kd.trainers.watch import TermGuard, TermHistory, in_log_line, judge

if TYPE_CHECKING:
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer as Base
else:
    Base = object

TEACHER_CHECK_BATCHES = 5
T = TypeVar("T")


class DistillationMixin(Base):
    """Trains a shrunken student beside a frozen teacher. Put it first among the bases of a trainer.

    Everything that is not distillation is the other base's. Each training step runs the teacher on the batch, then
    the base's own ``train_step``, whose loss has the distillation terms added.
    """

    default_options: ClassVar[dict[str, Any]] = {}
    distils: ClassVar[bool] = True

    # the other base's
    num_epochs: int
    num_iterations_per_epoch: int
    num_val_iterations_per_epoch: int
    save_every: int
    loss: Any
    folder_with_segs_from_previous_stage: Any

    def __init__(self, plans: dict, configuration: str, fold: int, dataset_json: dict,
                 device: torch.device = torch.device("cuda")) -> None:  # noqa: B008  # fmt: skip
        environment.check_results_folder()
        self.options: Options = resolve_options(self.default_options, plans, options_file())
        if not self.distils:
            self.options = self.options.model_copy(update={"terms": Terms()})
        elif not self.options.terms.active():
            raise KDError(
                f"{type(self).__name__} has no distillation term with a weight above 0. Name one under 'terms:', or "
                "train the student alone with -tr nnUNetTrainerKDBaseline."
            )
        plans, made_here = student_plans(plans, configuration, dataset_json, self.options.student)
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs = self.options.epochs or self.num_epochs
        self.num_iterations_per_epoch = self.options.iterations_per_epoch or self.num_iterations_per_epoch
        self.num_val_iterations_per_epoch = self.options.val_iterations_per_epoch or self.num_val_iterations_per_epoch
        self.save_every = self.options.save_every or self.save_every
        self.teacher: Teacher | None = None
        self._iteration = 0
        self._bar: tqdm | None = None
        self._resumed: dict[str, Any] = {}
        self._find_previous_stage()
        self._say_student(made_here)

    # ---- before the training

    def initialize(self) -> None:
        if self.options.seed is not None:
            environment.seed_everything(self.options.seed)
        super().initialize()
        if self._uses_cpu_bfloat16:
            environment.use_bfloat16(self.network)

    def on_train_start(self) -> None:
        if not self.was_initialized:
            self.initialize()
        check_same_method(self._resumed, self._record(), self.output_folder)
        if self.is_cascaded:
            train, val = self.do_split()
            command = (
                f"nnUNetv2_train {dataset_id(self.plans_manager.dataset_name)} "
                f"{self.configuration_manager.previous_stage_name} F -p {self.plans_manager.plans_name} "
                f"-tr {type(self).__name__}   (F = 0 to 4)"
            )
            check_previous_stage(self.folder_with_segs_from_previous_stage, [*train, *val], command)
        if self.distils:
            self._start_distillation()
        super().on_train_start()
        self._write_record()
        if self.teacher is not None:
            self._say_pseudo_dice(self.teacher)

    def _start_distillation(self) -> None:
        """Load the teacher, tap both networks, put the terms into the loss."""
        self.teacher = load_teacher(
            self.options.teacher,
            self._as_student(),
            self.plans_manager.plans,
            self.dataset_json,
            self._splits(),
            self.do_split()[1],
            self.enable_deep_supervision,
        )
        self.teacher.network.to(self.device)
        if self._uses_cpu_bfloat16:
            environment.use_bfloat16(self.teacher.network)
        self._say(*about_teacher(self.teacher, count_params(plain_network(self.network)), self.fold))
        terms = self.options.terms.active()
        student = plain_network(self.network)
        terms = with_resolved_stages(terms, student)
        stages = match_stages(tapped_stages(terms), student, self.teacher.network) if tapped_stages(terms) else {}
        self.teacher.tap(stages)
        labels = Labels(
            self.label_manager.num_segmentation_heads, self.label_manager.has_regions, self.label_manager.ignore_label
        )
        self.loss = DistillationLoss(self.loss, terms, labels, Taps(student, {stage: stage for stage in stages}))
        self._guard = TermGuard()
        self._history = TermHistory(self.output_folder, {name: term.weight for name, term in terms.items()})
        self._history.resume(self.current_epoch)

    # ---- during the training

    def on_epoch_start(self) -> None:
        if self.options.seed is not None:  # a resumed training sees the batches that an uninterrupted one would see
            environment.seed_everything(self.options.seed + 1_000_003 * (self.current_epoch + 1) + self.local_rank)
        super().on_epoch_start()

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        self._iteration = 0
        on_screen = self.local_rank == 0 and sys.stderr.isatty()
        self._bar = tqdm(total=self.num_iterations_per_epoch, disable=not on_screen, leave=False, unit="it")

    def train_step(self, batch: dict) -> dict:
        result = super().train_step(batch) if self.teacher is None else self._distillation_step(batch, self.teacher)
        self._iteration += 1
        if self._bar is not None:
            self._bar.update()
        return result

    def _distillation_step(self, batch: dict, teacher: Teacher) -> dict:
        batch["data"] = batch["data"].to(self.device, non_blocking=True)
        self.loss.answer = self._ask(teacher, batch["data"])
        self.loss.factor = self._factor()
        self.loss.taps.recording = True
        try:
            result = super().train_step(batch)
        finally:
            self.loss.answer = None
            self.loss.taps.recording = False
        self._history.add(self.loss.values, self.loss.factor)
        if self._guard.add(self.loss.values):
            judge(self._of_all_workers(self._guard.seen))
        return result

    def _ask(self, teacher: Teacher, data: Tensor) -> tuple[list[Tensor], dict[str, Tensor]]:
        """The teacher's answer under the student's autocast."""
        with torch.autocast("cuda") if self.device.type == "cuda" else nullcontext():
            return teacher(data)

    def on_train_epoch_end(self, train_outputs: list[dict]) -> None:
        if self._bar is not None:
            self._bar.close()
        super().on_train_epoch_end(train_outputs)
        if self.teacher is not None:
            self._close_epoch()

    def _close_epoch(self) -> None:
        workers = self._of_all_workers(self._history.means())
        if self.local_rank != 0:
            return
        means = {name: sum(worker[name] for worker in workers) / len(workers) for name in workers[0]}
        row = self._history.close_epoch(self.current_epoch, means)
        self.print_to_log_file("distillation:", in_log_line(row, self._history.weights))
        for (
            logger
        ) in self.logger.loggers:  # Weights & Biases where nnU-Net's own switch is on; never nnU-Net's local one
            for name, value in row.items():
                if name != "epoch":
                    logger.log(f"kd/{name}", value, self.current_epoch)

    def _factor(self) -> float:
        progress = (self.current_epoch + self._iteration / self.num_iterations_per_epoch) / self.num_epochs
        return factor_at(min(progress, 1.0), self.options.schedule)

    def _of_all_workers(self, mine: T) -> list[T]:
        if not self.is_ddp:
            return [mine]
        gathered: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(gathered, mine)
        return gathered

    # ---- checkpoints

    def save_checkpoint(self, filename: str) -> None:
        if self.local_rank != 0 or self.disable_checkpointing:
            super().save_checkpoint(filename)
            return
        unfinished = f"{filename}.unfinished"
        super().save_checkpoint(unfinished)
        make_stock(unfinished, filename, stock_name(type(self)), self._record())

    def load_checkpoint(self, filename_or_checkpoint: dict | str) -> None:
        if isinstance(filename_or_checkpoint, str):
            self._resumed = check_same_size(
                Path(filename_or_checkpoint), self.plans_manager.plans, self.configuration_name, self.dataset_json
            )
        super().load_checkpoint(filename_or_checkpoint)

    def _record(self) -> dict[str, Any]:
        """Where this student comes from, in plain values."""
        return {
            "nnunetv2_kd": __version__,
            "trainer": type(self).__name__,
            "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
            "options": self.options.model_dump(mode="json"),
            "student": self.plans_manager.plans["kd_student"],
            "teacher": self.teacher.record.as_dict() if self.teacher is not None else None,
        }

    def _write_record(self) -> None:
        if self.local_rank != 0:
            return
        record = self._record()
        Path(join(self.output_folder, RECORD_FILE)).write_text(json.dumps(record, indent=2) + "\n")
        options = yaml.safe_dump(self.options.model_dump(mode="json", exclude_unset=True), sort_keys=False)
        Path(join(self.output_folder, OPTIONS_FILE)).write_text(options)

    # ---- helpers

    @property
    def _uses_cpu_bfloat16(self) -> bool:
        return self.options.cpu_bfloat16 and self.device.type == "cpu" and environment.cpu_has_bfloat16()

    def _as_student(self) -> Student:
        plans_name = made_from(self.plans_manager.plans) or self.plans_manager.plans_name
        return Student(self.plans_manager.dataset_name, plans_name, self.configuration_name, self.fold)

    def _splits(self) -> list[dict[str, list[str]]]:
        file = Path(self.preprocessed_dataset_folder_base) / "splits_final.json"
        return json.loads(file.read_text()) if file.is_file() else []

    def _find_previous_stage(self) -> None:
        if self.is_cascaded:
            self.folder_with_segs_from_previous_stage = previous_stage_folder(
                self.folder_with_segs_from_previous_stage,
                teacher_folder(self.options.teacher, self._as_student()),
                self.configuration_manager.previous_stage_name,
                self.configuration_name,
            )

    def _say(self, *lines: str) -> None:
        for line in lines:
            self.print_to_log_file(line, also_print_to_console=self.local_rank == 0)

    def _say_student(self, made_here: bool) -> None:
        self._say(about_student(self.plans_manager.plans, self.configuration_name, self.dataset_json, made_here))
        if self.options.cpu_bfloat16 and not self._uses_cpu_bfloat16:
            self._say("cpu_bfloat16 is on, but this is no CPU with bfloat16 instructions: training as nnU-Net does.")

    def _say_pseudo_dice(self, teacher: Teacher) -> None:
        def answers() -> Iterator[tuple[Tensor, Tensor]]:
            for _ in range(TEACHER_CHECK_BATCHES):
                batch = next(self.dataloader_val)
                target = batch["target"][0] if isinstance(batch["target"], list) else batch["target"]
                yield self._ask(teacher, batch["data"].to(self.device))[0][0], target.to(self.device)

        self._say(*about_pseudo_dice(pseudo_dice(answers(), self.loss.labels), TEACHER_CHECK_BATCHES))
