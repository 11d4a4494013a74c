"""Teacher and student trained together (Liu et al., doi 10.1007/978-3-031-51455-5_21).

From the paper's abstract: both are trained simultaneously, and the best weights of the teacher distil the student. The
rest is ours: both see the same batches, the teacher learns from nnU-Net's loss alone, and "best" is nnU-Net's running
mean of the pseudo Dice.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.paths import nnUNet_preprocessed
from nnunetv2.utilities.collate_outputs import collate_outputs
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from nnunetv2_kd.errors import KDError
from nnunetv2_kd.formatting import format_count
from nnunetv2_kd.networks.build import build_network, plain_network
from nnunetv2_kd.networks.cost import count_params
from nnunetv2_kd.nnunet.datasets import dataset_id
from nnunetv2_kd.nnunet.files import read_json
from nnunetv2_kd.regions import Labels
from nnunetv2_kd.students.shrink import made_from
from nnunetv2_kd.teachers.teacher import Teacher, TeacherOutput, TeacherRecord
from nnunetv2_kd.trainers.checkpoint import stock_name
from nnunetv2_kd.trainers.mixin import DistillationMixin

TEACHERS = {"teacher", "teachers", "stored_teacher"}  # options that name a trained one
SMOOTHING = 0.9  # of nnU-Net's own running mean


class JointMixin(DistillationMixin):
    """Trains the network of the given plans as the teacher of its own student. The student is not distilled before
    the teacher's pseudo Dice is above 0 for the first time. The teacher lives as long as the training: only
    checkpoint_latest.pth holds it."""

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
        named = {name for name in self.options.model_fields_set & TEACHERS if getattr(self.options, name) is not None}
        if named:
            raise KDError(
                f"{type(self).__name__} trains its own teacher beside the student; '{named.pop()}' in the options "
                "names one that is trained already. Remove it, or train with -tr nnUNetTrainerRegionKD."
            )
        self._ema = self._best = 0.0
        self._validated: list[dict] = []

    # ---- before the training

    def _make_teachers(self) -> list[Teacher]:
        network = build_network(
            self._teacher_plans,
            self.configuration_name,
            self.dataset_json,
            stock_name(type(self)),
            self.enable_deep_supervision,
        ).to(self.device)
        self._plain_loss = self.loss
        self._snapshot = deepcopy(network)
        self._learner: nn.Module = network
        with self._as_teacher(optimizing=False):
            self._learner_optimizer, self._learner_scheduler = self.configure_optimizers()
        self._restore()
        self._speed_up(network, "teacher in training", trained=True)
        if self._do_i_compile():
            self._learner = torch.compile(network)
        if self.is_ddp:
            device_ids = [self.local_rank] if self.device.type == "cuda" else None
            self._learner = DistributedDataParallel(self._learner, device_ids=device_ids)
        record = TeacherRecord(
            folder=f"trained beside the student, from {self._teacher_plans['plans_name']}",
            fold=str(self.fold),
            checkpoint="",
            sha256="",
            trainer=type(self).__name__,
            epoch=0,
            params=count_params(network),
            seen_validation_cases=0,
        )
        heads = len(getattr(getattr(network, "decoder", None), "seg_layers", [None]))
        teacher = Teacher(self._snapshot, record, [True] * heads)
        self._speed_up(self._snapshot, "teacher", trained=False)
        return [teacher]

    def _restore(self) -> None:
        state = self._resumed_state.get("joint")
        if state is not None:
            plain_network(self._learner).load_state_dict(state["network"])
            self._snapshot.load_state_dict(state["snapshot"])
            self._learner_optimizer.load_state_dict(state["optimizer"])
            self._ema, self._best = state["ema"], state["best"]
        elif self.current_epoch > 0:
            self._say("WARNING: the checkpoint holds no teacher (only checkpoint_latest.pth does): it starts anew.")

    def _training_state(self) -> dict[str, Any]:
        return {
            **super()._training_state(),
            "joint": {
                "network": plain_network(self._learner).state_dict(),
                "optimizer": self._learner_optimizer.state_dict(),
                "snapshot": self._snapshot.state_dict(),
                "ema": self._ema,
                "best": self._best,
            },
        }

    def _say_teachers(self, labels: Labels) -> None:
        self._say(
            f"Teacher: the network of {self._teacher_plans['plans_name']}, "
            f"{format_count(self.teachers[0].record.params)} parameters, trained beside the student"
        )

    def _say_pseudo_dice(self, labels: Labels) -> None:
        """Nothing: the teacher is said to be as good as it is after every epoch."""

    # ---- during the training

    @contextmanager
    def _as_teacher(self, optimizing: bool = True) -> Iterator[None]:
        """Inside, nnU-Net's own steps train and validate the teacher instead of the student."""
        names = ("network", "loss", *(("optimizer", "lr_scheduler") if optimizing else ()))
        of_student = {name: getattr(self, name) for name in names}
        self.network, self.loss = self._learner, self._plain_loss
        if optimizing:
            self.optimizer, self.lr_scheduler = self._learner_optimizer, self._learner_scheduler
        try:
            yield
        finally:
            for name, value in of_student.items():
                setattr(self, name, value)

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        self._learner.train()
        self._learner_scheduler.step(self.current_epoch)

    def train_step(self, batch: dict) -> dict:
        with self._as_teacher():
            super(DistillationMixin, self).train_step(batch)
        return super().train_step(batch)

    def _answer(self, batch: dict) -> TeacherOutput | None:
        return super()._answer(batch) if self._best > 0 else None

    def on_validation_epoch_start(self) -> None:
        super().on_validation_epoch_start()
        self._learner.eval()

    def validation_step(self, batch: dict) -> dict:
        with self._as_teacher():  # nnU-Net writes into the target of datasets with an ignore label
            self._validated.append(super().validation_step({**batch, "target": copied(batch["target"])}))
        return super().validation_step(batch)

    def on_validation_epoch_end(self, val_outputs: list[dict]) -> None:
        super().on_validation_epoch_end(val_outputs)
        dice = self._teacher_dice()
        self._ema = SMOOTHING * self._ema + (1 - SMOOTHING) * dice if self.current_epoch > 0 else dice
        better = self._ema > self._best
        if better:
            self._best = self._ema
            self._snapshot.load_state_dict(plain_network(self._learner).state_dict())
        before = f"the one with {self._best:.4f} distils" if self._best > 0 else "none is good enough to distil yet"
        kept = "distils from now on" if better else before
        self._say(f"teacher: pseudo Dice {dice:.4f}, running mean {self._ema:.4f}; {kept}")

    def _teacher_dice(self) -> float:
        """Mean foreground pseudo Dice of this epoch's validation batches, as nnU-Net computes it; 0 for none."""
        counts = collate_outputs(self._validated)
        self._validated = []
        tp, fp, fn = (np.sum(self._of_all_workers(np.sum(counts[k], 0)), 0) for k in ("tp_hard", "fp_hard", "fn_hard"))
        whole = 2 * tp + fp + fn
        return float(np.mean(2 * tp[whole > 0] / whole[whole > 0])) if (whole > 0).any() else 0.0


def copied(target: Tensor | list[Tensor]) -> Tensor | list[Tensor]:
    return [y.clone() for y in target] if isinstance(target, list) else target.clone()


def plans_of_teacher(plans: dict[str, Any]) -> dict[str, Any]:
    """The plans that the student is, or was, made from.

    Raises:
        KDError: where the plans are a student's, and those that it was made from are gone.
    """
    name = made_from(plans)
    if name is None:
        return deepcopy(plans)
    file = Path(nnUNet_preprocessed) / plans["dataset_name"] / f"{name}.json"
    if not file.is_file():
        raise KDError(
            f"The plans {plans['plans_name']} were made from {name}, which the teacher needs, but {file} does not "
            f"exist. Plan again: nnUNetv2_plan_experiment -d {dataset_id(plans['dataset_name'])}"
        )
    plans_of_teacher: dict[str, Any] = read_json(file)
    return plans_of_teacher
