"""Distillation for any nnU-Net trainer: ``class Mine(DistillationMixin, nnUNetTrainerDA5)``."""

import json
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from tqdm import tqdm

from nnunetv2_kd.config import Options, Terms, WeightedTeacherOptions, options_file, resolve_options
from nnunetv2_kd.errors import KDError
from nnunetv2_kd.features import Taps, plain_network
from nnunetv2_kd.labels import Labels
from nnunetv2_kd.students import made_from, student_plans
from nnunetv2_kd.teachers import Answer, Ensemble, Student, Teacher, check_different, load_teacher
from nnunetv2_kd.teachers.find import dataset_id, teacher_folder
from nnunetv2_kd.trainers import adapters, environment
from nnunetv2_kd.trainers.cascade import check_previous_stage, previous_stage_folder
from nnunetv2_kd.trainers.checkpoint import check_same_method, check_same_size, make_stock, stock_name
from nnunetv2_kd.trainers.ema import WeightAverage
from nnunetv2_kd.trainers.loss import DistillationLoss
from nnunetv2_kd.trainers.optimizer import make_optimizer
from nnunetv2_kd.trainers.report import ReportMixin
from nnunetv2_kd.trainers.schedule import factor_at
from nnunetv2_kd.trainers.stored import StoredMixin
from nnunetv2_kd.trainers.terms import check_terms, need_logits, with_resolved_stages
from nnunetv2_kd.trainers.watch import TermGuard, TermHistory, in_log_line, judge

T = TypeVar("T")


class DistillationMixin(StoredMixin, ReportMixin):
    """Trains a shrunken student beside a frozen teacher. Put it first among the bases of a trainer.

    Everything that is not distillation is the other base's. Each training step runs the teacher on the batch, then
    the base's own ``train_step``, whose loss has the distillation terms added.
    """

    default_options: ClassVar[dict[str, Any]] = {}
    distils: ClassVar[bool] = True
    least_teachers: ClassVar[int] = 1

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
        if self.options.stored_teacher is None and len(self.options.all_teachers()) < self.least_teachers:
            raise KDError(
                f"{type(self).__name__} needs at least {self.least_teachers} teachers, named under 'teachers:' in the "
                "options file that nnUNet_kd_config points to (see configs/multi_teacher.yaml). To train some, each "
                f"on its own share of the cases: nnUNetv2_kd split-teachers -d {dataset_id(plans['dataset_name'])}"
            )
        plans, made_here = student_plans(plans, configuration, dataset_json, self.options.student)
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs = self.options.epochs or self.num_epochs
        self.num_iterations_per_epoch = self.options.iterations_per_epoch or self.num_iterations_per_epoch
        self.num_val_iterations_per_epoch = self.options.val_iterations_per_epoch or self.num_val_iterations_per_epoch
        self.save_every = self.options.save_every or self.save_every
        self.teachers: list[Teacher] = []
        self.ensemble: Ensemble | None = None
        self._iteration = 0
        self._bar: tqdm | None = None
        self._resumed: dict[str, Any] = {}
        self._resumed_state: dict[str, Any] = {}
        self._split: tuple[Any, Any] | None = None
        self._average: WeightAverage | None = None
        self._find_previous_stage()
        self._say_student(made_here)

    # ---- before the training

    def initialize(self) -> None:
        if self.options.seed is not None:
            environment.seed_everything(self.options.seed)
        super().initialize()

    def configure_optimizers(self) -> tuple[Any, Any]:
        if self.options.optimizer.name == "nnunet":
            return super().configure_optimizers()
        return make_optimizer(
            self.network.parameters(), self.options.optimizer, self.num_epochs, self.num_iterations_per_epoch
        )

    def on_train_start(self) -> None:
        if not self.was_initialized:
            self.initialize()
        check_same_method(self._resumed, self.options.model_dump(mode="json"), self.output_folder)
        if self.is_cascaded:
            train, val = self.do_split()
            command = (
                f"nnUNetv2_train {dataset_id(self.plans_manager.dataset_name)} "
                f"{self.configuration_manager.previous_stage_name} F -p {self.plans_manager.plans_name} "
                f"-tr {type(self).__name__}   (F = 0 to 4)"
            )
            check_previous_stage(self.folder_with_segs_from_previous_stage, [*train, *val], command)
        self._speed_up(self.network, "student", trained=True)
        self._start_average()
        if self.distils:
            self._start_distillation()
        super().on_train_start()
        self._write_record()
        if self._has_teacher:
            self._say_pseudo_dice(self.loss.labels)

    def _start_average(self) -> None:
        if self.options.ema is None:
            return
        kept = self._resumed_state.get("ema")
        if kept is None and self.current_epoch > 0:
            self._say(
                "WARNING: the checkpoint holds the mean of the weights alone (only checkpoint_latest.pth holds those "
                "that are trained): the training goes on from the mean."
            )
        self._average = WeightAverage(plain_network(self.network), self.options.ema, kept)
        self._average.follow(self.optimizer)

    def do_split(self) -> tuple[Any, Any]:
        # asked for by several; nnU-Net says the same lines into the log every time
        if self._split is None:
            self._split = super().do_split()
        return self._split

    def _start_distillation(self) -> None:
        """Load the teachers, tap all networks, put the terms into the loss."""
        labels = Labels(
            self.label_manager.num_segmentation_heads, self.label_manager.has_regions, self.label_manager.ignore_label
        )
        if self.options.stored_teacher is None:
            self.teachers = self._make_teachers()
        else:
            self.stored = self._open_store(labels)
        self._say_teachers(labels)
        if len(self.teachers) > 1:
            weights = [t.weight if isinstance(t, WeightedTeacherOptions) else 1 for t in self.options.all_teachers()]
            self.ensemble = Ensemble(self.teachers, weights, self.options.combine, labels)
        student = plain_network(self.network)
        terms = with_resolved_stages(self.options.terms.active(), student)
        self._say(*check_terms(terms, len(self.teachers), self.batch_size))
        stages, trained = self._tap_teachers(terms, student)
        self.loss = DistillationLoss(
            self.loss, terms, labels, Taps(student, {stage: stage for stage in stages}), trained
        )
        if self._do_i_compile():  # nnU-Net's own switch
            for teacher in self.teachers:
                teacher.compile(need_logits(terms))
            self.loss.compile_terms()
        anew = adapters.start(trained, self.optimizer, self.lr_scheduler, self._resumed_state, self.is_ddp)
        if anew and self.current_epoch > 0:
            self._say("WARNING: the checkpoint holds no adapters (only checkpoint_latest.pth does): they start anew.")
        self._guard = TermGuard()
        self._history = TermHistory(self.output_folder, {name: term.weight for name, term in terms.items()})
        self._history.resume(self.current_epoch)

    def _make_teachers(self) -> list[Teacher]:
        teachers = []
        several = len(self.options.all_teachers()) > 1
        for number, options in enumerate(self.options.all_teachers(), start=1):
            try:
                teacher = load_teacher(
                    options,
                    self._as_student(),
                    self.plans_manager.plans,
                    self.dataset_json,
                    self._splits(),
                    self.do_split()[1],
                    self.enable_deep_supervision,
                )
            except KDError as error:
                raise KDError(f"Teacher {number} under 'teachers': {error}" if several else str(error)) from error
            teacher.network.to(self.device)
            self._speed_up(teacher.network, "teacher", trained=False)
            teachers.append(teacher)
        check_different(teachers)
        return teachers

    # ---- during the training

    def on_epoch_start(self) -> None:
        if self.options.seed is not None:  # a resumed training sees the batches that an uninterrupted one would see
            environment.seed_everything(self.options.seed + 1_000_003 * (self.current_epoch + 1) + self.local_rank)
        super().on_epoch_start()

    def on_train_epoch_start(self) -> None:
        if self._average is not None:
            self._average.train()
        super().on_train_epoch_start()
        self._iteration = 0
        on_screen = self.local_rank == 0 and sys.stderr.isatty()
        self._bar = tqdm(total=self.num_iterations_per_epoch, disable=not on_screen, leave=False, unit="it")

    def train_step(self, batch: dict) -> dict:
        answer = self._answer(batch) if self._has_teacher else None
        result = super().train_step(batch) if answer is None else self._distillation_step(batch, answer)
        self._iteration += 1
        if self._bar is not None:
            self._bar.update()
        return result

    def _answer(self, batch: dict) -> Answer | None:
        """The teachers' answer to a batch; None where they have none yet."""
        if self.stored is not None:
            return self.stored(batch)
        batch["data"] = batch["data"].to(self.device, non_blocking=True)
        if self.ensemble is None:
            return self._ask(self.teachers[0], batch["data"], need_logits(self.loss.terms))
        target = batch["target"]
        on_device = (
            [y.to(self.device, non_blocking=True) for y in target]
            if isinstance(target, list)
            else target.to(self.device, non_blocking=True)
        )
        batch["target"] = on_device
        return self.ensemble(batch["data"], on_device, self._ask)

    def _ask(self, teacher: Teacher, data: Tensor, logits: bool = True) -> Answer:
        """One teacher's answer under the student's autocast."""
        with torch.autocast("cuda") if self.device.type == "cuda" else nullcontext():
            return teacher(data, logits)

    def _distillation_step(self, batch: dict, answer: Answer) -> dict:
        self.loss.answer = answer
        self.loss.factor = self._factor()
        self.loss.taps.recording = True
        try:
            result = super().train_step(batch)
        finally:
            self.loss.answer = None
            self.loss.taps.recording = False
        shares = self.ensemble.shares if self.ensemble is not None else ()
        notes = {f"weight_of_teacher_{number}": share for number, share in enumerate(shares, start=1)}
        self._history.add(self.loss.values, self.loss.factor, notes)
        if self._guard.add(self.loss.values):
            judge(self._of_all_workers(self._guard.seen))
        return result

    def on_train_epoch_end(self, train_outputs: list[dict]) -> None:
        if self._bar is not None:
            self._bar.close()
        super().on_train_epoch_end(train_outputs)
        if self._has_teacher:
            self._close_epoch()

    def on_validation_epoch_start(self) -> None:
        if self._average is not None:
            self._average.evaluate()
        super().on_validation_epoch_start()

    def _close_epoch(self) -> None:
        workers = self._of_all_workers(self._history.means())
        if self.local_rank != 0 or not workers[0]:
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
        added = len(list(self.loss.adapters.parameters())) if self._has_teacher else 0
        make_stock(unfinished, filename, stock_name(type(self)), self._record(), added, self._training_state())

    def _training_state(self) -> dict[str, Any]:
        """What a resumed training needs beside nnU-Net's own checkpoint, and nothing else does."""
        return {
            **({"adapters": self.loss.adapters.state_dict()} if self._has_teacher else {}),
            **({"ema": self._average.state()} if self._average is not None else {}),
        }

    def load_checkpoint(self, filename_or_checkpoint: dict | str) -> None:
        if isinstance(filename_or_checkpoint, str):
            self._resumed, self._resumed_state = check_same_size(
                Path(filename_or_checkpoint), self.plans_manager.plans, self.configuration_name, self.dataset_json
            )
            # its state goes into the optimizer at hand, which another kind of optimizer cannot read
            options = self.options.model_dump(mode="json")
            check_same_method(self._resumed, options, str(Path(filename_or_checkpoint).parent), ("optimizer",))
        super().load_checkpoint(filename_or_checkpoint)

    # ---- helpers

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
                teacher_folder(self.options.all_teachers()[0], self._as_student()),
                self.configuration_manager.previous_stage_name,
                self.configuration_name,
            )
