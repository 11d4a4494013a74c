"""A teacher that nnU-Net's own predictor runs over whole cases."""

from contextlib import suppress
from copy import deepcopy
from dataclasses import asdict
from typing import Any

import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import Tensor

from nnunetv2_kd.config import TeacherOptions
from nnunetv2_kd.errors import KDError
from nnunetv2_kd.networks import cpu_mode
from nnunetv2_kd.networks.stages import Stride, stage_modules
from nnunetv2_kd.networks.taps import Taps
from nnunetv2_kd.nnunet.checkpoint import read_checkpoint
from nnunetv2_kd.nnunet.files import fingerprint, read_json
from nnunetv2_kd.teachers.find import StudentIdentity, find_teacher
from nnunetv2_kd.teachers.load import cases_of, load_teacher
from nnunetv2_kd.teachers.running import RunningTeacher


class CasePredictor:
    """One of the teachers of a store.

    Attributes:
        teacher: loaded and checked.
        predictor: nnU-Net's, with the teacher's own patch size and mirroring.
        strides: of every stage whose region vectors can be stored; empty where the network is no U-Net.
        taps: of these stages; None where there are none.

    Args:
        options: which model.
        student: whom it will teach.
        plans, dataset_json: the student's.
        mirroring: whether to average over mirrored images, where the model was trained for that.
        bfloat16: on a CPU with the instructions.

    Raises:
        KDError: where there is no such model, or it does not fit.
    """

    def __init__(
        self,
        options: TeacherOptions,
        student: StudentIdentity,
        plans: dict[str, Any],
        dataset_json: dict[str, Any],
        device: torch.device,
        mirroring: bool,
        bfloat16: bool,
    ) -> None:
        self.path = find_teacher(options, student)
        self.teacher: RunningTeacher = load_teacher(
            options, student, plans, dataset_json, [], deep_supervision=False, in_patches=False
        )
        checkpoint = read_checkpoint(self.path.checkpoint, options.trust_pickle)
        own_plans = read_json(self.path.folder / "plans.json")
        own = PlansManager(own_plans)
        self.training_cases = cases_of(self.path, own_plans, read_json(self.path.folder / "dataset.json"), checkpoint)
        axes = checkpoint.get("inference_allowed_mirroring_axes")
        self.mirroring = list(axes) if mirroring and axes else []
        self.bfloat16 = bfloat16
        network = self.teacher.network.to(device)
        self.strides: dict[str, Stride] = {}
        with suppress(KDError):  # terms on regions are then refused when a training asks for them
            self.strides = {name: stride for name, (_, stride) in stage_modules(network).items()}
        self.taps = Taps(network, {name: name for name in self.strides}) if self.strides else None
        if bfloat16:
            cpu_mode.set_mode(network, "bfloat16")
        self.predictor = nnUNetPredictor(
            use_mirroring=bool(self.mirroring),
            device=device,
            allow_tqdm=False,
            perform_everything_on_device=device.type == "cuda",
        )
        self.predictor.manual_initialization(
            network,
            own,
            own.get_configuration(checkpoint["init_args"]["configuration"]),
            None,
            deepcopy(dataset_json),
            str(checkpoint["trainer_name"]),
            tuple(self.mirroring) or None,
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain values for the store's header."""
        record = asdict(self.teacher.records()[0])
        del record["seen_validation_cases"]  # depends on the student's fold, see training_cases
        return record | {
            "fingerprint": fingerprint(self.path.checkpoint),
            "mirroring": self.mirroring,
            "training_cases": self.training_cases.as_dict(),
            "bfloat16": self.bfloat16,
            "stages": {name: list(stride) for name, stride in self.strides.items()},
        }

    def logits(self, image: Tensor) -> Tensor:
        """``(K, *S)`` for a whole preprocessed image ``(C, *S)``, on the CPU."""
        return self.predictor.predict_sliding_window_return_logits(image).cpu()
