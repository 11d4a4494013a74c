"""Distillation for any nnU-Net trainer: ``class Mine(DistillationMixin, nnUNetTrainerDA5)``."""

import atexit
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from nnunetv2.paths import nnUNet_results
from torch import nn
from tqdm import tqdm

from nnunetv2_kd.config import TeacherOptions, WeightedTeacherOptions
from nnunetv2_kd.distillation import Distillation
from nnunetv2_kd.distillation.gradients import EVERY
from nnunetv2_kd.errors import KDError
from nnunetv2_kd.interruption import end_children_with_process, shield_children_from_interrupts
from nnunetv2_kd.networks import cpu_mode
from nnunetv2_kd.networks.build import plain_network
from nnunetv2_kd.networks.cost import count_params
from nnunetv2_kd.networks.threads import limit_threads
from nnunetv2_kd.nnunet.datasets import dataset_id
from nnunetv2_kd.nnunet.fold_data import check_fold_data, preprocess_line
from nnunetv2_kd.nnunet.locks import hold_lock, readers_lock
from nnunetv2_kd.nnunet.model_folder import OPTIONS_FILE, ModelName
from nnunetv2_kd.nnunet.room_on_disk import explain_failed_writes
from nnunetv2_kd.nnunet.splits import read_splits
from nnunetv2_kd.nnunet.teacher_labels import agreement_note
from nnunetv2_kd.nnunet.validation import set_stale_aside
from nnunetv2_kd.record import PreviousStageRecord, Record, TeacherRecord, is_coarser
from nnunetv2_kd.regions import Labels
from nnunetv2_kd.students.part_of_teacher import start_as_part
from nnunetv2_kd.students.shrink import made_from
from nnunetv2_kd.students.size import DEFAULT_WIDTH, student_plans
from nnunetv2_kd.teachers.ensemble import EnsembleTeacher, check_different
from nnunetv2_kd.teachers.find import StudentIdentity, teacher_folder
from nnunetv2_kd.teachers.label_map import check_covered, structures_of
from nnunetv2_kd.teachers.load import load_teacher
from nnunetv2_kd.teachers.running import RunningTeacher
from nnunetv2_kd.teachers.stored.store import Store, store_folder
from nnunetv2_kd.teachers.stored.teacher import StoredTeacher, first_stored, stored_records
from nnunetv2_kd.teachers.teacher import Batch, Teacher, TeacherOutput
from nnunetv2_kd.trainers import environment, error_exit, finite, trained_parts, unsaved
from nnunetv2_kd.trainers.cascade import (
    check_previous_stage,
    check_same_previous_stage,
    content,
    previous_stage_folder,
)
from nnunetv2_kd.trainers.checkpoint import (
    check_same_method,
    check_same_size,
    check_same_teachers,
    make_stock,
    recorded_options,
    stock_name,
)
from nnunetv2_kd.trainers.command_line import current_command
from nnunetv2_kd.trainers.conditions import initial_weights, pretrained_file
from nnunetv2_kd.trainers.ema import WeightAverage
from nnunetv2_kd.trainers.messages import about_labels, about_no_better, about_start, about_student, about_teachers
from nnunetv2_kd.trainers.mirroring import common_axes, student_axes
from nnunetv2_kd.trainers.optimizer import default_optimizer, make_optimizer
from nnunetv2_kd.trainers.options import (
    NAME,
    SEED,
    VARIABLE,
    Options,
    options_file,
    options_of_environment,
    resolve_options,
)
from nnunetv2_kd.trainers.out_of_space import explain_out_of_memory
from nnunetv2_kd.trainers.pretrained import check_pretrained
from nnunetv2_kd.trainers.progress import TermGuard, TermHistory, check_first_terms, in_log_line
from nnunetv2_kd.trainers.provenance import make_record, teacher_labels, write_record
from nnunetv2_kd.trainers.result_message import result_message
from nnunetv2_kd.trainers.schedule import factor_at
from nnunetv2_kd.trainers.start import Start, check_named_plans, named_plans, write_named_plans
from nnunetv2_kd.trainers.step_clock import StepClock, time_to_end
from nnunetv2_kd.trainers.training_lock import check_not_training, hold_training_lock

if TYPE_CHECKING:
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer as Base
else:
    Base = object

T = TypeVar("T")
ASSESSED_BATCHES = 5


class DistillationMixin(Base):
    """Trains a shrunken student with a teacher. Put it first among a trainer's base classes.

    The other base class does everything except distillation. Each training step first calls the teacher with the batch,
    then the base's own ``train_step``, to whose loss the distillation terms are added.
    """

    default_options: ClassVar[dict[str, Any]] = {}
    distils: ClassVar[bool] = True
    names_teacher: ClassVar[bool] = True  # in the options
    least_teachers: ClassVar[int] = 1

    # from the other base class
    num_epochs: int
    num_iterations_per_epoch: int
    num_val_iterations_per_epoch: int
    save_every: int
    loss: Any
    optimizer: Any
    folder_with_segs_from_previous_stage: Any
    inference_allowed_mirroring_axes: tuple[int, ...] | None

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008
    ) -> None:
        error_exit.install_exit_messages()
        environment.check_results_folder()
        environment.check_device(device)
        self.options: Options = resolve_options(self.default_options, plans, options_file(), options_of_environment())
        if not self.distils:
            self.options = self.options.model_copy(update={"terms": {}})
        self._check_options(dataset_id(plans["dataset_name"]))
        plans, made_here = student_plans(plans, configuration, dataset_json, self.options.student)
        if self.options.optimizer is None:
            optimizer = default_optimizer(plans, configuration, dataset_json)
            self.options = self.options.model_copy(update={"optimizer": optimizer})
        plans = named_plans(plans, self.options.name)
        folder = self._fold_folder(plans, configuration, fold)
        check_not_training(folder)
        self._start = Start(folder)
        atexit.register(self._start.undo)  # nnU-Net may also fail outside of what is caught here
        with self._start.undo_on_failure():
            environment.check_fold_folder(self._start.folder)
            super().__init__(plans, configuration, fold, dataset_json, device)
            self._set_up(made_here)

    def _set_up(self, made_here: bool) -> None:
        self._made_here = made_here
        self.num_epochs = self.options.epochs or self.num_epochs
        self.num_iterations_per_epoch = self.options.iterations_per_epoch or self.num_iterations_per_epoch
        self.num_val_iterations_per_epoch = self.options.val_iterations_per_epoch or self.num_val_iterations_per_epoch
        self.save_every = self.options.save_every or self.save_every
        self.teacher: Teacher | None = None
        self.distillation: Distillation | None = None
        self._iteration = 0
        self._bar: tqdm | None = None
        self._resumed: Record | None = None
        self._resumed_state: dict[str, Any] = {}
        self.began_as_part_of: TeacherRecord | None = None
        self.previous_stage: PreviousStageRecord | None = None
        self._split: tuple[Any, Any] | None = None
        self._average: WeightAverage | None = None
        self._finite = finite.FiniteSteps(self._say)
        self._unsaved = unsaved.UnsavedEpochs(self)
        self._output: TeacherOutput | None = None  # the teacher's output in the current step
        self._held = ExitStack()  # locks
        self._has_reached_teacher = False
        self.precision: str = cpu_mode.STOCK
        self._find_previous_stage()
        plans = self.plans_manager.plans
        self._say(about_student(plans, self.configuration_name, self.dataset_json, made_here))
        self._say(*self._about_cpu_speed())

    def _check_options(self, dataset: str) -> None:
        name = type(self).__name__
        if self.distils and not self.options.active_terms():
            raise KDError(
                f"{name} has no distillation term with a weight above 0. Name one under 'terms:', or train the student "
                "alone with -tr nnUNetTrainerKDBaseline."
            )
        if self.options.stored_teacher is None and len(self.options.all_teachers()) < self.least_teachers:
            raise KDError(
                f"{name} needs at least {self.least_teachers} teachers, named in the options file that "
                "nnUNet_kd_config points to, such as 'teachers: [{fold: 5}, {fold: 6}]'. The command nnUNetv2_kd "
                f"split-teachers -d {dataset} gives each its own share of the cases, writes that file and prints the "
                "commands that train them."
            )

    # ---- before the training

    def _fold_folder(self, plans: dict, configuration: str, fold: int) -> Path:
        model = ModelName(type(self).__name__, plans["plans_name"], configuration)
        return Path(nnUNet_results) / plans["dataset_name"] / str(model) / f"fold_{fold}"

    def run_training(self) -> None:
        folder = Path(self.output_folder)
        with (
            hold_training_lock(folder, self.local_rank, self._start),
            self._held,
            error_exit.interruptible(self._about_interruption),
            explain_failed_writes(folder, self.about_saved),
            self._start.undo_on_failure(),
            self._unsaved.write_on_failure(),
            self._workers_ended(),
        ):
            super().run_training()

    @contextmanager
    def _workers_ended(self) -> Iterator[None]:
        """However this context ends, end nnU-Net's data workers, and keep its threads from reporting that
        they are missing."""
        try:
            yield
        finally:
            for loader in (self.dataloader_train, self.dataloader_val):
                if (abort := getattr(loader, "abort_event", None)) is not None:
                    abort.set()

    def about_saved(self) -> str:
        """For a training that cannot continue: which checkpoint it has, and the command that continues from it."""
        saved = self._saved()
        if saved is None:
            return "Nothing was saved yet: the same command starts again."
        return f"{saved} is complete. To continue from it:\n  {self._line_to_go_on()}"

    def _saved(self) -> str | None:
        names = (unsaved.LATEST, "checkpoint_best.pth")
        return next((name for name in names if (Path(self.output_folder) / name).is_file()), None)

    def _about_interruption(self) -> str:
        """What happened, and the command that continues."""
        saved = self._saved()
        if not self._start.is_over:
            return "Interrupted before the first iteration: nothing was kept."
        if saved is None:
            return (
                f"Interrupted in epoch {self.current_epoch}, before anything was saved: the same command starts again."
            )
        return f"Interrupted in epoch {self.current_epoch}. Go on from {saved}:\n  {self._line_to_go_on()}"

    def _line_to_go_on(self, flag: str = "--c") -> str:
        own: dict[str, Any] = {VARIABLE: Path(self.output_folder).absolute() / OPTIONS_FILE, NAME: None, SEED: None}
        return current_command(flag, **own)

    def initialize(self) -> None:
        limit_threads(self.device)
        self._check_data()
        if self.options.seed is not None:
            environment.seed_everything(self.options.seed)
        super().initialize()
        self._clock = StepClock(self.device)
        pretrained = pretrained_file(sys.argv)
        if pretrained is not None:
            check_pretrained(Path(pretrained), plain_network(self.network), self.options.student)

    def _check_data(self) -> None:
        """Check that all cases of the fold exist. Trainers that make their own folds are not checked."""
        plans, configuration = self.plans_manager, self.configuration_name
        if not environment.splits_as_nnunet(type(self), DistillationMixin):
            return
        name = plans.plans_name if is_coarser(plans.plans) else made_from(plans.plans) or plans.plans_name
        check_fold_data(
            Path(self.preprocessed_dataset_folder),
            self.fold,
            self.dataset_json["file_ending"],
            preprocess_line(plans.dataset_name, name, configuration),
        )

    def configure_optimizers(self) -> tuple[Any, Any]:
        options = self.options.optimizer
        made = (
            super().configure_optimizers()
            if options is None or options.name == "nnunet"
            else make_optimizer(self.network.parameters(), options, self.num_epochs, self.num_iterations_per_epoch)
        )
        finite.refuse_non_finite_steps(made[0])
        return made

    def on_train_start(self) -> None:
        if not self.was_initialized:
            self.initialize()
        self._fill_in_defaults()
        check_same_method(self._resumed, self.options.model_dump(mode="json"), self.output_folder)
        plans, configuration = self.plans_manager.plans, self.configuration_name
        self._say(*self._start.check(plans, configuration, make_record(self)))
        check_named_plans(Path(self.preprocessed_dataset_folder_base), plans, configuration, self.options.name)
        self._start_as_part_of_teacher()
        self._check_previous_stage()
        self.precision = self._set_cpu_mode(self.network, "student", trained=True)
        self._start_average()
        self._say(*about_labels(teacher_labels(self), len(self.do_split()[1])))
        if self.distils:
            self._start_distillation()
            record = make_record(self)
            self._start.check_teacher(record)
            check_same_teachers(self._resumed, record, self.output_folder)
        super().on_train_start()
        if self.local_rank == 0:
            write_record(self)
        if self.teacher is not None:
            self._say(*self.teacher.assess(self._validation_batches))
        terms = f"; of the distillation: {self._history.png_file.name}" if self.teacher is not None else ""
        self._say(f"Log: {self.log_file}. Curves, beside it: progress.png{terms}.")

    def _fill_in_defaults(self) -> None:
        """Put every value in force into the options, whether the user, the trainer's name or nnU-Net set it."""
        in_force: dict[str, Any] = {
            "epochs": self.num_epochs,
            "iterations_per_epoch": self.num_iterations_per_epoch,
            "val_iterations_per_epoch": self.num_val_iterations_per_epoch,
            "save_every": self.save_every,
        }
        sizes = self.options.student.model_dump(exclude_none=True, exclude={"convs_per_stage", "start"})
        if self._made_here and not sizes:
            in_force["student"] = self.options.student.model_copy(update={"width": DEFAULT_WIDTH})
        self.options = self.options.model_copy(update=in_force)

    def _start_as_part_of_teacher(self) -> None:
        """Overwrite the student's weights if the options ask for it and the training is not resumed."""
        if self._resumed is not None:
            self.began_as_part_of = self._resumed.start
        if self.options.student.start is None or self._resumed is not None or self.current_epoch > 0:
            return
        options = self.options.all_teachers()[0]
        if self.options.stored_teacher is not None:
            data = Path(self.preprocessed_dataset_folder)
            options = first_stored(Store(store_folder(data.parent, data.name, self.options.stored_teacher)))
        teacher = self._find_teacher(options)
        start_as_part(plain_network(self.network), teacher.network)
        self.began_as_part_of = teacher.records()[0]
        self._say(*about_start(self.began_as_part_of, self.fold))

    @property
    def initial_weights(self) -> str:
        """``random``, a file, or the model that the student started as a part of; if resumed, as first started."""
        if self._resumed is not None and self._resumed.training is not None and self._resumed.training.initial_weights:
            return self._resumed.training.initial_weights
        return initial_weights(sys.argv) if self.began_as_part_of is None else f"a part of {self.began_as_part_of}"

    def _start_average(self) -> None:
        if self.options.ema is None:
            return
        kept = self._resumed_state.get("ema")
        if kept is None and self.current_epoch > 0:
            self._say(
                "WARNING: the checkpoint holds only the mean of the weights (only checkpoint_latest.pth also holds the "
                "trained weights): the training goes on from the mean."
            )
        self._average = WeightAverage(plain_network(self.network), self.options.ema, kept)
        self._average.follow(self.optimizer)

    def do_split(self) -> tuple[Any, Any]:
        # called several times; nnU-Net would repeat its lines in the log every time
        if self._split is None:
            self._split = super().do_split()
        return self._split

    def _start_distillation(self) -> None:
        """Make the teacher, add the terms to the loss, and the terms' trained parts to the optimizer."""
        labels = Labels(
            self.label_manager.num_segmentation_heads, self.label_manager.has_regions, self.label_manager.ignore_label
        )
        self.teacher = self._make_teacher(labels)
        self._say(*about_teachers(self.teacher, count_params(plain_network(self.network)), self.fold))
        self.distillation = Distillation(
            self.network, self.teacher, self.options.terms, labels, self.loss, self.options.balance == "gradient"
        )
        self._say(*self.distillation.check_batch(self.batch_size))
        self.loss = self.distillation.loss
        if self._do_i_compile():  # nnU-Net's own switch
            self.distillation.compile()
        anew = trained_parts.start_training_parts(
            self.distillation.trained_parts, self.optimizer, self.lr_scheduler, self._resumed_state, self.is_ddp
        )
        if anew and self.current_epoch > 0:
            self._say("WARNING: the checkpoint holds no adapters (only checkpoint_latest.pth does): they start afresh.")
        if self.loss.gradient_balance is not None and "balance" in self._resumed_state:
            self.loss.gradient_balance.restore(self._resumed_state["balance"], self.device)
        self._guard = TermGuard()
        self._history = TermHistory(
            self.output_folder, {name: term.weight for name, term in self.distillation.terms.items()}
        )
        self._say(*self._history.resume(self.current_epoch))

    def _make_teacher(self, labels: Labels) -> Teacher:
        """The teacher that the options name."""
        if self.options.stored_teacher is not None:
            return self._open_store(labels)
        named = self.options.all_teachers()
        teachers = [
            self._load_teacher(options, labels, f"Teacher {number} under 'teachers': " if len(named) > 1 else "")
            for number, options in enumerate(named, start=1)
        ]
        check_covered(structures_of(self.dataset_json), [teacher.label_map for teacher in teachers])
        if len(teachers) == 1:
            return teachers[0]
        check_different(teachers)
        weights = [options.weight if isinstance(options, WeightedTeacherOptions) else 1.0 for options in named]
        return EnsembleTeacher(teachers, weights, self.options.combine, labels)

    def _find_teacher(self, options: TeacherOptions, device: torch.device | None = None) -> RunningTeacher:
        """A model, compared with the student; on the CPU without a device."""
        return load_teacher(
            options,
            self._identity(),
            self.plans_manager.plans,
            self.dataset_json,
            self.do_split()[1],
            self.enable_deep_supervision,
            device,
        )

    def _load_teacher(self, options: TeacherOptions, labels: Labels, prefix: str) -> RunningTeacher:
        try:
            teacher = self._find_teacher(options, self.device)
        except KDError as error:
            raise KDError(f"{prefix}{error}") from error.__cause__
        teacher.labels = labels
        self._set_cpu_mode(teacher.network, "teacher", trained=False)
        return teacher

    def _open_store(self, labels: Labels) -> StoredTeacher:
        """The store that the options name, checked against the training's data."""
        if self.is_cascaded:
            raise KDError("stored_teacher cannot be used in a cascade: let the teacher run during the training.")
        data = Path(self.preprocessed_dataset_folder)
        store = Store(store_folder(data.parent, data.name, str(self.options.stored_teacher)))
        cases, validation = self.do_split()
        if writer := self._held.enter_context(hold_lock(readers_lock(store.folder), shared=True)):
            raise KDError(
                f"{store.folder} is being written: {writer} (process id on host). Train after that has ended, or "
                "with another store."
            )
        store.check(data, (labels.num_heads, labels.has_regions), self.dataset_json, cases)
        records = stored_records(store, data.parent.name, validation)
        teacher = StoredTeacher(store, records, cases, labels, self.num_input_channels, self.device)
        teacher.dice = store.mean_dice(validation)
        return teacher

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> tuple[Any, ...]:  # noqa: N802
        *others, axes = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        teachers = common_axes(self.teacher.records()) if self.teacher is not None else None
        allowed, lines = student_axes(tuple(axes or ()), self.options.mirroring, teachers, type(self).__name__)
        self._say(*lines)
        in_inference = [axis for axis in self.inference_allowed_mirroring_axes or () if axis in allowed]
        self.inference_allowed_mirroring_axes = tuple(in_inference) or None  # nnU-Net's predictor fails with ()
        return (*others, allowed or None)

    def get_tr_and_val_datasets(self) -> tuple[Any, Any]:
        training, validation = super().get_tr_and_val_datasets()
        return (training if self.teacher is None else self.teacher.training_dataset(training)), validation

    def get_dataloaders(self) -> tuple[Any, Any]:
        end_children_with_process()
        with shield_children_from_interrupts():
            return self._get_dataloaders(self.teacher)

    def _get_dataloaders(self, teacher: Teacher | None) -> tuple[Any, Any]:
        if teacher is None:
            return super().get_dataloaders()
        plain: Callable[..., Any] = self.get_training_transforms
        # nnU-Net's is a static method that trainers also call on their classes, so it is replaced on this instance only
        self.__dict__["get_training_transforms"] = lambda *args, **kwargs: teacher.training_transforms(
            plain(*args, **kwargs)
        )
        try:
            return super().get_dataloaders()
        finally:
            del self.__dict__["get_training_transforms"]

    # ---- during the training

    def on_epoch_start(self) -> None:
        if self.options.seed is not None:  # so that a resumed training sees the same batches as an uninterrupted one
            environment.seed_everything(self.options.seed + 1_000_003 * (self.current_epoch + 1) + self.local_rank)
        super().on_epoch_start()

    def on_train_epoch_start(self) -> None:
        if self._average is not None:
            self._average.train()
        super().on_train_epoch_start()
        if self.teacher is not None:
            self.teacher.start_epoch(self.current_epoch)
        self._iteration = 0
        on_screen = self.local_rank == 0 and sys.stderr.isatty()
        self._bar = tqdm(total=self.num_iterations_per_epoch, disable=not on_screen, leave=False, unit="it")

    def train_step(self, batch: Batch) -> dict:
        batch = self._finite.batch(batch, self.dataloader_train)
        with self._clock.step(self._iteration):
            result = self._finite_step(batch)
        self._iteration += 1
        if not self._start.is_over:
            self._end_of_start()
        if self._bar is not None:
            self._bar.update()
        return result

    def _finite_step(self, batch: Batch) -> dict:
        """Make a step, or skip it if its loss or gradient is not finite; the loss of a skipped step is NaN."""
        scale = 0.0 if self.grad_scaler is None else self.grad_scaler.get_scale()
        try:
            result = self.plain_train_step(batch) if self.teacher is None else self._taught_step(self.teacher, batch)
            left_out = not np.isfinite(result["loss"])
        except finite.NotFiniteError:
            result, left_out = {"loss": np.float32(np.nan)}, True
        if left_out:
            values = self.distillation.loss.values if self.distillation is not None else {}
            self._finite.count_skipped(finite.first_not_finite(self._output, values))
        elif self.grad_scaler is not None and self.grad_scaler.get_scale() < scale:
            self._finite.count_scaled_down()
        else:
            self._finite.count_taken()
        self._output = None
        return result

    def _end_of_start(self) -> None:
        """After the first iteration, keep what would have been undone until then."""
        self._start.keep()
        if self.local_rank != 0:
            return
        self._start.set_aside()
        data = Path(self.preprocessed_dataset_folder_base)
        write_named_plans(data, self.plans_manager.plans, self.configuration_name, self.options.name)

    def plain_train_step(self, batch: Batch) -> dict:
        """The other base's own step."""
        return super().train_step(batch)

    def plain_validation_step(self, batch: Batch) -> dict:
        """The other base's own validation step."""
        return super().validation_step(batch)

    def _taught_step(self, teacher: Teacher, batch: Batch) -> dict:
        if self.distillation is not None:
            self.distillation.loss.values = {}  # of the last step
        with explain_out_of_memory("the teacher", self):
            teacher.learn(batch)
            factor = self._factor()
            if factor == 0:
                teacher.skip(batch)
                output = None
            else:
                with self._clock.teacher():
                    output = teacher(batch)
        with explain_out_of_memory("the student", self):
            return self.plain_train_step(batch) if output is None else self._distillation_step(batch, output, factor)

    def _distillation_step(self, batch: Batch, output: TeacherOutput, factor: float) -> dict:
        self._output = output
        measure = self._iteration % EVERY < self.options.schedule.every  # the first taught step of each EVERY
        with self.loss.distilling(output, factor, measure):
            result = self.plain_train_step(batch)
        shares = self.teacher.shares() if self.teacher is not None else {}
        self._history.add(self.loss.values, self.loss.weighted, factor, shares, self.loss.gradients if measure else {})
        if self._guard.add(self.loss.values, self.loss.learnable):
            check_first_terms(self.of_all_workers(self._guard.seen), self._guard.learnable)
        return result

    def on_train_epoch_end(self, train_outputs: list[dict]) -> None:
        if self._bar is not None:
            self._bar.close()
        self._say(*self._finite.close_epoch(self.current_epoch, len(train_outputs)))
        super().on_train_epoch_end(finite.fill_in_losses(train_outputs))
        if self.teacher is not None:
            self._close_epoch()

    def on_epoch_end(self) -> None:
        super().on_epoch_end()
        self._unsaved.remember()
        left = self.num_epochs - self.current_epoch
        if left <= 0:
            return
        times = [self.logger.get_value(f"epoch_{edge}_timestamps", step=-1) for edge in ("start", "end")]
        share = self._clock.share()
        epochs = f"{left} epoch{'' if left == 1 else 's'}"
        message = f"About {time_to_end(times[1] - times[0], left)} left until the end of the training ({epochs})"
        self._say(message + ("." if not share else f"; the teacher takes {100 * share:.0f} % of a training step."))

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        about = f"Interrupted in the validation. Validate:\n  {self._line_to_go_on('--val')}"
        if self.local_rank == 0:
            ending = self.dataset_json["file_ending"]
            self._say(*set_stale_aside(Path(self.output_folder), self.do_split()[1], ending))
        folder = Path(self.output_folder)
        with (
            hold_training_lock(folder, self.local_rank, self._start),
            error_exit.interruptible(lambda: about),
            explain_failed_writes(folder, lambda: about.replace("Interrupted in the validation. ", "")),
        ):
            super().perform_actual_validation(save_probabilities)
        note = agreement_note(self.dataset_json, self.do_split()[1])
        self._say(*([f"This validation Dice is {note}."] if note else []))
        if words := result_message(Path(self.output_folder)):
            self._say(words)

    def on_validation_epoch_start(self) -> None:
        if self._average is not None:
            self._average.evaluate()
        super().on_validation_epoch_start()
        if self.teacher is not None:
            self.teacher.start_validation()

    def validation_step(self, batch: Batch) -> dict:
        if self.teacher is not None:
            self.teacher.validate(batch)
        return self.plain_validation_step(batch)

    def on_validation_epoch_end(self, val_outputs: list[dict]) -> None:
        super().on_validation_epoch_end(val_outputs)
        if self.teacher is not None:
            self._say(*self.teacher.end_epoch(self.current_epoch))
            self._compare(self.teacher)

    def _compare(self, teacher: Teacher) -> None:
        """Say once when the student has become as good as its teacher."""
        if not self._has_reached_teacher:
            messages = about_no_better(float(self.logger.get_value("ema_fg_dice", step=-1)), teacher.dice)
            self._has_reached_teacher = bool(messages)
            self._say(*messages)

    def _close_epoch(self) -> None:
        workers = self.of_all_workers(self._history.means())
        if self.local_rank != 0 or not workers[0]:
            return
        means = {name: sum(worker[name] for worker in workers) / len(workers) for name in workers[0]}
        row = self._history.close_epoch(self.current_epoch, means)
        self.print_to_log_file("distillation:", in_log_line(row, self._history.weights))
        self._say(*self._history.advice(row))
        # Weights & Biases where nnU-Net's own switch is on; never nnU-Net's local logger
        for logger in self.logger.loggers:
            for name, value in row.items():
                if name != "epoch":
                    logger.log(f"kd/{name}", value, self.current_epoch)

    def _factor(self) -> float:
        """Factor on all terms in this step; 0 in the steps in which the teacher rests."""
        if self._iteration % self.options.schedule.every:
            return 0.0
        progress = (self.current_epoch + self._iteration / self.num_iterations_per_epoch) / self.num_epochs
        return factor_at(min(progress, 1.0), self.options.schedule)

    def of_all_workers(self, mine: T) -> list[T]:
        """A value from every DDP worker, including this one."""
        if not self.is_ddp:
            return [mine]
        gathered: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(gathered, mine)
        return gathered

    def _validation_batches(self) -> Iterator[Batch]:
        return (next(self.dataloader_val) for _ in range(ASSESSED_BATCHES))

    # ---- checkpoints

    def save_checkpoint(self, filename: str) -> None:
        if self.local_rank != 0 or self.disable_checkpointing:
            super().save_checkpoint(filename)
            return
        finite.check_weights(plain_network(self.network), filename)
        unfinished = f"{filename}.unfinished"
        try:
            super().save_checkpoint(unfinished)
            checkpoint = torch.load(unfinished, map_location="cpu", weights_only=False)
            torch.save(self.as_stock(checkpoint, Path(filename).name), unfinished)
            # in one step, so that a training killed in the middle leaves the previous checkpoint whole
            os.replace(unfinished, filename)
        except BaseException:
            Path(unfinished).unlink(missing_ok=True)
            raise

    def as_stock(self, checkpoint: dict[str, Any], name: str) -> dict[str, Any]:
        """What nnU-Net's trainer saves, as a checkpoint of stock nnU-Net for a file of that name."""
        added = 0 if self.distillation is None else len(list(self.distillation.trained_parts.parameters()))
        return make_stock(checkpoint, name, stock_name(type(self)), make_record(self), added, self._training_state())

    def _training_state(self) -> dict[str, Any]:
        """What only a resumed training needs, in addition to nnU-Net's own checkpoint."""
        average = {} if self._average is None else {"ema": self._average.state()}
        if self.distillation is None or self.teacher is None:
            return average
        balance = self.distillation.loss.gradient_balance
        return {
            **average,
            "adapters": self.distillation.trained_parts.state_dict(),
            **({} if balance is None else {"balance": balance.state()}),
            **self.teacher.training_state(),
        }

    def load_checkpoint(self, filename_or_checkpoint: dict | str) -> None:
        self._start.resumes = True
        if isinstance(filename_or_checkpoint, str):
            plans = self.plans_manager.plans
            data = Path(self.preprocessed_dataset_folder_base)
            self._resumed, self._resumed_state = check_same_size(
                Path(filename_or_checkpoint),
                plans,
                self.configuration_name,
                self.dataset_json,
                None if self._made_here else data / f"{plans['plans_name']}.json",
            )
            self.previous_stage = self._resumed.previous_stage if self._resumed is not None else None
            if self.previous_stage is not None and Path(self.previous_stage.folder).is_dir():
                self.folder_with_segs_from_previous_stage = self.previous_stage.folder
        if not self.was_initialized:
            self.initialize()
        optimizer = self.optimizer
        now = self.options.model_dump(mode="json")["optimizer"]
        if self._resumed is not None and recorded_options(self._resumed)["optimizer"] != now:
            # this optimizer cannot load another kind's state: a validation goes on without it, a training is refused
            # before its first step
            self.optimizer = SimpleNamespace(load_state_dict=lambda state: None)
        try:
            super().load_checkpoint(filename_or_checkpoint)
        finally:
            self.optimizer = optimizer

    # ---- helpers

    def _say(self, *lines: str) -> None:
        for line in lines:
            self.print_to_log_file(line, also_print_to_console=self.local_rank == 0)

    @property
    def _cpu_speed(self) -> cpu_mode.CpuSpeed:
        """How networks compute; nnU-Net's own way if the options ask for something that is not possible."""
        wanted = self.options.speed_on_cpu()
        is_lacking = cpu_mode.is_bfloat16(wanted) and not cpu_mode.cpu_has_bfloat16()
        return cpu_mode.STOCK if self.device.type != "cpu" or is_lacking else wanted

    def _about_cpu_speed(self) -> list[str]:
        wanted = self.options.speed_on_cpu()
        if wanted == self._cpu_speed:
            return []
        lacking = " with bfloat16 instructions" if self.device.type == "cpu" else ""
        return [f"The options ask for {wanted}, but this is not a CPU{lacking}: training as nnU-Net does."]

    def _set_cpu_mode(self, network: nn.Module, name: str, trained: bool) -> str:
        if self._cpu_speed != cpu_mode.STOCK:
            shape = (self.batch_size, self.num_input_channels, *self.configuration_manager.patch_size)
            chosen = cpu_mode.choose_mode(network, self._cpu_speed, shape, trained)
            self._say(f"The {name} computes in {chosen}.")
            return chosen.mode
        return cpu_mode.STOCK

    def _identity(self) -> StudentIdentity:
        plans_name = made_from(self.plans_manager.plans) or self.plans_manager.plans_name
        return StudentIdentity(self.plans_manager.dataset_name, plans_name, self.configuration_name, self.fold)

    def _find_previous_stage(self) -> None:
        if self.is_cascaded:
            train, val = self.do_split()
            self.folder_with_segs_from_previous_stage = previous_stage_folder(
                self.folder_with_segs_from_previous_stage,
                teacher_folder(self.options.all_teachers()[0], self._identity()),
                self.configuration_manager.previous_stage_name,
                self.configuration_name,
                [*train, *val],
            )

    def _check_previous_stage(self) -> None:
        if self.is_cascaded:
            train, val = self.do_split()
            command = (
                f"nnUNetv2_train {dataset_id(self.plans_manager.dataset_name)} "
                f"{self.configuration_manager.previous_stage_name} {{fold}} -p {self.plans_manager.plans_name} "
                f"-tr {type(self).__name__}"
            )
            folder = str(self.folder_with_segs_from_previous_stage)
            splits = read_splits(Path(self.preprocessed_dataset_folder_base))
            check_previous_stage(folder, [*train, *val], splits, command)
            before = self._resumed.previous_stage if self._resumed is not None else None
            check_same_previous_stage(before, folder, [*train, *val])
            self.previous_stage = before or PreviousStageRecord(folder, content(folder, [*train, *val]))
            self._say(f"Segmentations of the previous stage: {folder}")
