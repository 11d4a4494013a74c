"""Teacher and student trained together (Liu et al., doi 10.1007/978-3-031-51455-5_21).

From the paper's abstract: both are trained simultaneously, and the teacher's best weights teach the student. The rest
is ours: both see the same batches, the teacher learns from nnU-Net's loss alone, and "best" means the highest running
mean of nnU-Net's pseudo Dice.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import torch
from nnunetv2.paths import nnUNet_preprocessed
from nnunetv2.utilities.collate_outputs import collate_outputs
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from nnunetv2_kd.errors import KDError
from nnunetv2_kd.formatting import format_count
from nnunetv2_kd.methods import Methods
from nnunetv2_kd.networks.build import build_network, plain_network
from nnunetv2_kd.networks.cost import count_params
from nnunetv2_kd.nnunet.datasets import dataset_id
from nnunetv2_kd.nnunet.plans import read_plans
from nnunetv2_kd.record import TeacherRecord
from nnunetv2_kd.regions import Labels
from nnunetv2_kd.students.shrink import made_from
from nnunetv2_kd.teachers.running import RunningTeacher
from nnunetv2_kd.teachers.teacher import Batch, Teacher, TeacherOutput
from nnunetv2_kd.trainers.checkpoint import stock_name
from nnunetv2_kd.trainers.mixin import DistillationMixin

TEACHERS = {"teacher", "teachers", "stored_teacher"}  # options that name a trained teacher
SMOOTHING = 0.9  # of nnU-Net's own running mean


class LearningTeacher(Teacher):
    """A network trained by nnU-Net's own steps together with the student, and a snapshot of it that teaches.

    The snapshot is refreshed whenever the running mean of the network's pseudo Dice improves. Until it is above 0 for
    the first time, there is no distillation.

    Args:
        trainer: of the student. During a step, its ``network``, ``loss`` and optimizer are replaced by the teacher's.
        network: on the trainer's device.
        plans_name: of the plans that the network is built from.
        resumed: the `training_state` from a checkpoint; empty for a fresh start.
        compiled: whether to compile the network that is trained.
    """

    def __init__(
        self, trainer: DistillationMixin, network: nn.Module, plans_name: str, resumed: dict[str, Any], compiled: bool
    ) -> None:
        self._trainer = trainer
        self._plans_name = plans_name
        self._loss = trainer.loss
        self._learner: nn.Module = network
        record = TeacherRecord(
            folder=f"trained beside the student, from {plans_name}",
            fold=str(trainer.fold),
            checkpoint="",
            sha256="",
            trainer=type(trainer).__name__,
            epoch=0,
            params=count_params(network),
            seen_validation_cases=0,
        )
        self._record = record
        self.snapshot = RunningTeacher(deepcopy(network), record)
        self.ema = self.best = 0.0
        self._validated: list[dict] = []
        with self._in_trainer(network=network, loss=self._loss):
            self._optimizer, self._scheduler = trainer.configure_optimizers()
        if resumed:
            network.load_state_dict(resumed["network"])
            self.snapshot.network.load_state_dict(resumed["snapshot"])
            self._optimizer.load_state_dict(resumed["optimizer"])
            self.ema, self.best = resumed["ema"], resumed["best"]
        if compiled:
            self._learner = cast(nn.Module, torch.compile(network))
        if trainer.is_ddp:
            device_ids = [trainer.local_rank] if trainer.device.type == "cuda" else None
            self._learner = DistributedDataParallel(self._learner, device_ids=device_ids)

    # ---- the snapshot, which teaches

    def attach(self, student: nn.Module, methods: Methods) -> list[str]:
        return self.snapshot.attach(student, methods)

    def __call__(self, batch: Batch) -> TeacherOutput | None:
        return self.snapshot(batch) if self.best > 0 else None

    def stage_channels(self) -> dict[str, int]:
        return self.snapshot.stage_channels()

    def compile(self) -> None:
        self.snapshot.compile()

    def records(self) -> list[TeacherRecord]:
        return self.snapshot.records()

    def describe(self) -> list[str]:
        params = format_count(self._record.params)
        return [f"Teacher: the network of {self._plans_name}, {params} parameters, trained beside the student"]

    # ---- the network, which learns

    def start_epoch(self, epoch: int) -> None:
        self._learner.train()
        self._scheduler.step(epoch)

    def learn(self, batch: Batch) -> None:
        with self._in_trainer(
            network=self._learner, loss=self._loss, optimizer=self._optimizer, lr_scheduler=self._scheduler
        ):
            self._trainer.plain_train_step(batch)

    def start_validation(self) -> None:
        self._learner.eval()

    def validate(self, batch: Batch) -> None:
        with self._in_trainer(network=self._learner, loss=self._loss):
            # nnU-Net writes into the target of datasets with an ignore label
            counts = self._trainer.plain_validation_step({**batch, "target": copy_target(batch["target"])})
        self._validated.append(counts)

    def end_epoch(self, epoch: int) -> list[str]:
        dice = mean_dice(self._validated, self._trainer.of_all_workers)
        self._validated = []
        self.ema = SMOOTHING * self.ema + (1 - SMOOTHING) * dice if epoch > 0 else dice
        self.dice = self.ema
        better = self.ema > self.best
        if better:
            self.best = self.ema
            self.snapshot.network.load_state_dict(plain_network(self._learner).state_dict())
        before = f"the one with {self.best:.4f} teaches" if self.best > 0 else "none is good enough to teach yet"
        kept = "teaches from now on" if better else before
        return [f"teacher: pseudo Dice {dice:.4f}, running mean {self.ema:.4f}; {kept}"]

    def training_state(self) -> dict[str, Any]:
        return {
            "joint": {
                "network": plain_network(self._learner).state_dict(),
                "optimizer": self._optimizer.state_dict(),
                "snapshot": self.snapshot.network.state_dict(),
                "ema": self.ema,
                "best": self.best,
            }
        }

    @contextmanager
    def _in_trainer(self, **own: Any) -> Iterator[None]:
        """Within this context, the trainer has these attributes of the teacher instead of the student's."""
        of_student = {name: getattr(self._trainer, name) for name in own}
        for name, value in own.items():
            setattr(self._trainer, name, value)
        try:
            yield
        finally:
            for name, value in of_student.items():
                setattr(self._trainer, name, value)


class JointMixin(DistillationMixin):
    """Trains the network of the given plans as the teacher of a smaller student. The teacher exists only during the
    training, and is saved only in checkpoint_latest.pth."""

    names_teacher: ClassVar[bool] = False

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008
    ) -> None:
        self._teacher_plans = plans_of_teacher(plans)
        super().__init__(plans, configuration, fold, dataset_json, device)

    def _check_options(self, dataset: str) -> None:
        super()._check_options(dataset)
        named = {name for name in self.options.model_fields_set & TEACHERS if getattr(self.options, name) is not None}
        if named:
            raise KDError(
                f"{type(self).__name__} trains its own teacher beside the student; '{named.pop()}' in the options "
                "names a teacher that is already trained. Remove it, or train with -tr nnUNetTrainerRegionKD."
            )

        if self.options.student.start is not None:
            raise KDError(
                f"{type(self).__name__} trains its own teacher from scratch, so the student cannot start as a part "
                "of it: remove student.start from the options, or train with -tr nnUNetTrainerRegionKD."
            )

    def _make_teacher(self, labels: Labels) -> Teacher:
        network = build_network(
            self._teacher_plans,
            self.configuration_name,
            self.dataset_json,
            stock_name(type(self)),
            self.enable_deep_supervision,
        ).to(self.device)
        resumed = self._resumed_state.get("joint", {})
        if not resumed and self.current_epoch > 0:
            self._say("WARNING: the checkpoint holds no teacher (only checkpoint_latest.pth does): it starts afresh.")
        teacher = LearningTeacher(self, network, self._teacher_plans["plans_name"], resumed, self._do_i_compile())
        self._set_cpu_mode(network, "teacher in training", trained=True)
        self._set_cpu_mode(teacher.snapshot.network, "teacher", trained=False)
        return teacher


def mean_dice(validated: list[dict], of_all_workers: Callable[[Any], list[Any]]) -> float:
    """Mean foreground pseudo Dice of validation batches, as nnU-Net computes it; 0 if there are none.

    Args:
        validated: what nnU-Net's validation step returned for every batch.
        of_all_workers: gathers a value of every DDP worker.
    """
    counts = collate_outputs(validated)
    tp, fp, fn = (np.sum(of_all_workers(np.sum(counts[k], 0)), 0) for k in ("tp_hard", "fp_hard", "fn_hard"))
    whole = 2 * tp + fp + fn
    return float(np.mean(2 * tp[whole > 0] / whole[whole > 0])) if (whole > 0).any() else 0.0


def copy_target(target: Tensor | list[Tensor]) -> Tensor | list[Tensor]:
    return [y.clone() for y in target] if isinstance(target, list) else target.clone()


def plans_of_teacher(plans: dict[str, Any]) -> dict[str, Any]:
    """The plans that the student is made from.

    Raises:
        KDError: if the given plans are a student's, and the plans that it was made from no longer exist.
    """
    name = made_from(plans)
    if name is None:
        return deepcopy(plans)
    dataset = Path(nnUNet_preprocessed) / plans["dataset_name"]
    if not (dataset / f"{name}.json").is_file():
        raise KDError(
            f"The plans {plans['plans_name']} were made from {name}, which the teacher needs, but "
            f"{dataset / f'{name}.json'} does not exist. Plan again: nnUNetv2_plan_experiment -d "
            f"{dataset_id(plans['dataset_name'])}"
        )
    return read_plans(dataset, name)
