"""Run a teacher over full cases with nnU-Net's own predictor."""

from collections.abc import Callable, Mapping, Sequence
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
from nnunetv2_kd.nnunet.files import fingerprint
from nnunetv2_kd.nnunet.model_files import read_model_files
from nnunetv2_kd.nnunet.model_folder import ModelName, parse_model_name
from nnunetv2_kd.teachers.check import voxel_problems
from nnunetv2_kd.teachers.find import StudentIdentity, find_teacher
from nnunetv2_kd.teachers.label_map import LabelMap, map_labels, structures_of
from nnunetv2_kd.teachers.load import cases_of, load_teacher
from nnunetv2_kd.teachers.running import RunningTeacher
from nnunetv2_kd.teachers.stored.own_space import OwnSpace, Seen

Images = Callable[[], Mapping[str, Sequence[str]]]


class CasePredictor:
    """One of the teachers of a store.

    Attributes:
        teacher: the loaded teacher.
        predictor: nnU-Net's, with the teacher's own patch size and mirroring.
        space: how it sees raw images; None if it uses the student's preprocessed cases.
        map: from its labels to the student's.
        weight: how much it counts relative to the others.
        strides: of every stage whose region vectors can be stored; empty if the network is not a U-Net.
        taps: on these stages; None if there are none.

    Args:
        options: which model.
        student: the student to teach.
        plans, dataset_json: the student's.
        mirroring: whether to average over mirrored images, if the model was trained with mirroring.
        bfloat16: compute in bfloat16, on a CPU with the instructions.
        images: returns the raw images of all cases; called if the teacher cannot use the preprocessed ones.
        channel_names: the student's name for each of the teacher's channels whose names differ.
        weight: see the attribute.
        own_space: always use the raw images.

    Raises:
        KDError: if there is no such model, or it does not fit.
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
        images: Images = dict,
        channel_names: Mapping[str, str] | None = None,
        weight: float = 1.0,
        own_space: bool = False,
    ) -> None:
        self.path = find_teacher(options, student)
        self.teacher: RunningTeacher = load_teacher(
            options, student, plans, dataset_json, [], deep_supervision=False, in_patches=False
        )
        self.weight = weight
        checkpoint = read_checkpoint(self.path.checkpoint, options.trust)
        configuration = checkpoint["init_args"]["configuration"]
        own_plans, self.dataset_json = read_model_files(self.path.folder)
        own = PlansManager(own_plans)
        self.labels = options.labels or {}
        self.map: LabelMap = map_labels(structures_of(dataset_json), structures_of(self.dataset_json), self.labels)
        self.training_cases = cases_of(self.path, own_plans, self.dataset_json, checkpoint)
        axes = checkpoint.get("inference_allowed_mirroring_axes")
        self.mirroring = list(axes) if mirroring and axes else []
        self.bfloat16 = bfloat16
        network = self.teacher.network.to(device)
        self.strides: dict[str, Stride] = {}
        with suppress(KDError):  # a training with terms on regions is then refused
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
            own.get_configuration(configuration),
            None,
            deepcopy(self.dataset_json),
            str(checkpoint["trainer_name"]),
            tuple(self.mirroring) or None,
        )
        self.differs = voxel_problems(
            (own_plans, self.dataset_json), (plans, dataset_json), configuration, student.configuration
        )
        patch = PlansManager(deepcopy(plans)).get_configuration(student.configuration).patch_size
        self.student_dims = len(patch)
        self.space: OwnSpace | None = None
        if self.differs or own_space:

            def load(named: TeacherOptions) -> "CasePredictor":
                setting = (device, mirroring, bfloat16, images, channel_names)
                return CasePredictor(named, student, plans, dataset_json, *setting, own_space=True)

            before = own.get_configuration(configuration).previous_stage_name
            self.space = OwnSpace(
                own_plans,
                configuration,
                self.dataset_json,
                plans,
                dataset_json,
                images(),
                channel_names or {},
                None if before is None else self._previous(before, options, load),
            )

    def _previous(
        self, configuration: str, options: TeacherOptions, load: Callable[[TeacherOptions], "CasePredictor"]
    ) -> tuple[OwnSpace, Callable[[Tensor], Tensor]]:
        """The space and the prediction of a cascade's previous stage, whose folder is beside the cascade's."""
        name = parse_model_name(self.path.folder.name)
        if name is None:
            raise KDError(
                f"{self.path.folder} is a cascade whose previous stage cannot be found, because the folder does not "
                "have a name like nnU-Net's: name it TRAINER__PLANS__CONFIGURATION, and the previous stage's folder "
                f"beside it the same with {configuration}."
            )
        folder = self.path.folder.parent / str(ModelName(name.trainer, name.plans, configuration))
        model = load(
            TeacherOptions(
                folder=folder,
                fold=int(self.path.fold) if str(self.path.fold).isdigit() else "all",
                checkpoint=options.checkpoint,
                trust=options.trust,
            )
        )
        assert model.space is not None
        return model.space, model.logits

    def as_dict(self) -> dict[str, Any]:
        """Plain values for the store's header."""
        record = asdict(self.teacher.records()[0])
        del record["seen_validation_cases"]  # depends on the student's fold, see training_cases
        plain = record | {
            "fingerprint": fingerprint(self.path.checkpoint),
            "mirroring": self.mirroring,
            "training_cases": self.training_cases.as_dict(),
            "bfloat16": self.bfloat16,
            "stages": {name: list(stride) for name, stride in self.strides.items()},
        }
        # a store whose teachers share the student's data and labels keeps its older form
        if self.weight != 1:
            plain["weight"] = self.weight
        if not self.map.is_one_to_one:
            plain["labels"] = {name: list(labels) for name, labels in self.labels.items()}
            plain["known"] = list(self.map.known)
        if self.space is not None:
            plain["differs"] = self.differs
            plain["mirrored_axes"] = list(self.space.student_axes(record["mirrored_axes"] or (), self.student_dims))
        return plain

    def see(self, case: str, image: Tensor, properties: Mapping[str, Any]) -> Seen:
        """A case as this teacher sees it.

        Args:
            case: its name.
            image: ``(C, *S)`` as it was preprocessed for the student.
            properties: that nnU-Net stores with the image.
        """
        return Seen(image) if self.space is None else self.space.see(case, properties, image.shape[1:])

    def logits(self, image: Tensor) -> Tensor:
        """``(K, *S)`` for a whole preprocessed image ``(C, *S)``, on the CPU."""
        return self.predictor.predict_sliding_window_return_logits(image).cpu()
