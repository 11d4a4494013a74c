"""Find, check and load the model that teaches."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nnunetv2_kd.config import TeacherOptions
from nnunetv2_kd.errors import KDError, listing
from nnunetv2_kd.networks.build import build_network, find_trainer
from nnunetv2_kd.networks.cost import count_params
from nnunetv2_kd.nnunet.checkpoint import read_checkpoint
from nnunetv2_kd.nnunet.files import sha256
from nnunetv2_kd.nnunet.model_files import read_model_files, refuse_unexpected_content
from nnunetv2_kd.nnunet.model_folder import CheckpointPath
from nnunetv2_kd.record import TeacherRecord, is_coarser
from nnunetv2_kd.teachers.advice import advise_moved_plans, named_labels, plans_of_teacher, store_commands
from nnunetv2_kd.teachers.check import (
    check_patch,
    check_same_task,
    patch_size,
    renamed_channel,
    same_labels_and_channels,
    voxel_problems,
)
from nnunetv2_kd.teachers.find import StudentIdentity, find_teacher
from nnunetv2_kd.teachers.label_map import LabelMap, map_labels, own_problems, structures_of
from nnunetv2_kd.teachers.running import RunningTeacher
from nnunetv2_kd.teachers.seen import TrainingCases, training_cases


def load_teacher(
    options: TeacherOptions,
    student: StudentIdentity,
    student_plans: dict[str, Any],
    student_dataset_json: dict[str, Any],
    validation: list[str],
    deep_supervision: bool,
    device: torch.device | None = None,
    in_patches: bool = True,
) -> RunningTeacher:
    """Find, check and load the teacher.

    Args:
        options: which teacher.
        student: the student to teach.
        student_plans, student_dataset_json: what the teacher is compared with.
        validation: the student's validation cases, to find out whether the teacher has seen any.
        deep_supervision: whether the student is trained with it; the teacher's heads are built accordingly.
        device: to run on; None: the CPU.
        in_patches: whether the teacher must fit the student's patches and labels.

    Raises:
        KDError: if there is no such teacher, it does not fit the student, or its weights do not fit its plans.
    """
    path = _find(options, student, student_plans, student_dataset_json)
    plans, dataset_json = read_model_files(path.folder)
    checkpoint = read_checkpoint(path.checkpoint, options.trust)
    configuration = checkpoint["init_args"]["configuration"]
    label_map = None
    if in_patches:
        with refuse_unexpected_content(str(path.folder)):
            wanted = (student_plans, student_dataset_json)
            _check_patches(options, path, (plans, dataset_json), wanted, configuration, student)
        label_map = running_map(options, dataset_json, student_dataset_json)
    trainer = str(checkpoint["trainer_name"])
    network = build_network(plans, configuration, dataset_json, trainer, deep_supervision, options.trust)
    missing = [] if find_trainer(trainer) is not None else [_not_here(trainer)]
    try:
        load_strictly(network, checkpoint["network_weights"], path)
    except KDError as error:
        raise KDError("\n".join([str(error), *missing, *([ADD_TRAINER] if missing else [])])) from error
    if in_patches:
        check_patch(
            network, *(patch_size(*model) for model in ((plans, configuration), (student_plans, student.configuration)))
        )
    cases = cases_of(path, plans, dataset_json, checkpoint)
    record = teacher_record(path, checkpoint, count_params(network), cases.seen(student.dataset_name, validation))
    with refuse_unexpected_content(f"the optimizer's state in {path.checkpoint}"):
        heads = trained_heads(network, checkpoint.get("optimizer_state"))
    notes = [*missing, *(renamed_channel(dataset_json, student_dataset_json) if in_patches else [])]
    return RunningTeacher(network, record, heads, device, notes=notes, label_map=label_map)


def _check_patches(
    options: TeacherOptions,
    path: CheckpointPath,
    teacher: tuple[dict, dict],
    wanted: tuple[dict, dict],
    configuration: str,
    student: StudentIdentity,
) -> None:
    """Check that a teacher can run on the student's patches.

    Raises:
        KDError: if it cannot; with the commands that solve it, if there are any.
    """
    try:
        check_same_task(teacher, wanted, configuration, student.configuration, labels=options.labels is None)
    except KDError as error:
        lines: list[str] = []
        if not is_coarser(wanted[0]) and same_labels_and_channels(teacher[1], wanted[1]):
            lines = plans_of_teacher(path, teacher[0], configuration, student)
            if options.folder is None and options.plans is None:
                lines = advise_moved_plans(student, *wanted, teacher[0]["plans_name"]) or lines
        if voxel_problems(teacher, wanted, configuration, student.configuration):
            lines += store_commands(path, teacher[1], wanted, student, options.labels)
        elif options.labels is None:
            lines += named_labels(teacher[1], wanted[1])
        raise KDError("\n".join([str(error), *lines])) from error


def _find(
    options: TeacherOptions, student: StudentIdentity, plans: dict[str, Any], dataset_json: dict[str, Any]
) -> CheckpointPath:
    """The teacher's path.

    Raises:
        KDError: if it does not exist; with the command that trains it, if that teacher would fit.
    """
    try:
        return find_teacher(options, student)
    except KDError as error:
        if options.model_fields_set & {"folder", "plans", "configuration"}:
            raise
        lines = advise_moved_plans(student, plans, dataset_json, student.plans_name)
        if not lines:
            raise
        raise KDError("\n".join([str(error).split("\n")[0], *lines])) from error


ADD_TRAINER = (
    "That trainer may build another network than the plans describe: add its folder to the environment variable "
    "nnUNet_extTrainer."
)


def teacher_record(
    path: CheckpointPath, checkpoint: Mapping[str, Any], params: int, seen_validation_cases: int | None
) -> TeacherRecord:
    """The record of a teacher.

    Args:
        path: of its checkpoint.
        checkpoint: the checkpoint's content.
        params: number of its network's parameters.
        seen_validation_cases: how many of the student's validation cases it was trained on; None: not known, or looked
            up later for the student's fold.
    """
    with refuse_unexpected_content(f"the record of the training in {path.checkpoint}"):
        return TeacherRecord(
            folder=path.where,
            fold=str(path.fold),
            checkpoint=path.checkpoint_name,
            sha256=sha256(path.checkpoint),
            trainer=str(
                (checkpoint.get("kd") or {}).get("trainer", checkpoint["trainer_name"])
            ),  # our trainers save the names of stock trainers
            epoch=int(checkpoint["current_epoch"]) if "current_epoch" in checkpoint else None,
            params=params,
            seen_validation_cases=seen_validation_cases,
            mirrored_axes=mirrored_axes(checkpoint),
        )


def cases_of(
    path: CheckpointPath, plans: dict[str, Any], dataset_json: dict[str, Any], checkpoint: dict[str, Any]
) -> TrainingCases:
    """What is known about the cases that a model was trained on; all arguments describe that model."""
    folder, ending = path.checkpoint.parent, dataset_json["file_ending"]
    with refuse_unexpected_content(f"the record of the training in {path.checkpoint}"):
        return training_cases(folder, plans["dataset_name"], path.fold, ending, checkpoint.get("kd"))


def _not_here(trainer: str) -> str:
    return f"The teacher's trainer {trainer} is not installed: its network is built from its plans."


def mirrored_axes(checkpoint: Mapping[str, Any]) -> tuple[int, ...]:
    """Axes of a patch along which training mirrored, read from the checkpoint as nnU-Net's predictor does; empty if the
    checkpoint does not say."""
    return tuple(checkpoint.get("inference_allowed_mirroring_axes") or ())


def running_map(
    options: TeacherOptions, dataset_json: dict[str, Any], student_dataset_json: dict[str, Any]
) -> LabelMap | None:
    """The label map of a teacher whose options name labels; None if they do not, because then all labels are equal.

    Raises:
        KDError: lists what is wrong with the names.
    """
    if options.labels is None:
        return None
    teacher, student = structures_of(dataset_json), structures_of(student_dataset_json)
    problems = own_problems(student, "labels", teacher, options.labels)
    problems += [
        f"labels: the teacher has no label {label!r}, only {', '.join(teacher.names)}"
        for label in sorted({label for labels in options.labels.values() for label in labels} - set(teacher.names))
    ]
    if problems:
        raise KDError(listing("The labels of teacher and student do not fit together:", problems))
    return map_labels(student, teacher, options.labels)


def load_strictly(network: nn.Module, weights: dict[str, Tensor], path: CheckpointPath) -> None:
    """Load weights; every name and shape must fit.

    Raises:
        KDError: names what differs, or is not finite.
    """
    weights = plain_weights(weights)
    expected = network.state_dict()
    problems = [f"{key}: missing in the checkpoint" for key in expected if key not in weights]
    problems += [f"{key}: in the checkpoint only" for key in weights if key not in expected]
    problems += [
        f"{key}: shape {tuple(weights[key].shape)} in the checkpoint, {tuple(expected[key].shape)} in the network"
        for key in expected
        if key in weights and weights[key].shape != expected[key].shape
    ]
    problems += [
        f"{key}: another kind of number in the checkpoint ({weights[key].dtype}) than in the network ({value.dtype})"
        for key, value in expected.items()
        if key in weights and not _same_kind(weights[key], value)
    ]
    if problems:
        shown = problems[:5] + ([f"and {len(problems) - 5} more"] if len(problems) > 5 else [])
        raise KDError(listing(f"The weights in {path.checkpoint} do not fit the network of its plans.json:", shown))
    lost = [key for key in expected if not torch.isfinite(weights[key]).all()]
    if lost:
        raise KDError(
            f"{len(lost)} of {len(expected)} weights in {path.checkpoint} are not finite numbers, such as "
            f"{lost[0]}: its training diverged, and it cannot teach. Use another checkpoint, or train it again."
        )
    network.load_state_dict(weights)


def plain_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights under the names that they have in the network, without the prefixes of wrappers that were
    used in training."""
    return {key.removeprefix("module.").removeprefix("_orig_mod."): value for key, value in weights.items()}


def _same_kind(mine: Tensor, expected: Tensor) -> bool:
    """Whether two types hold the same kind of number: integers are not weights, and a complex number would lose its
    imaginary part. Half precision counts as float."""
    if expected.is_floating_point():
        return mine.is_floating_point() and mine.layout == torch.strided
    return mine.dtype == expected.dtype


def trained_heads(network: nn.Module, optimizer_state: dict[str, Any] | None) -> list[bool]:
    """Which segmentation heads, finest first, ever received a gradient.

    nnU-Net always builds all heads, even if a trainer switches deep supervision off. An optimizer keeps a state for a
    parameter only once it has had a gradient, so a head without a state still has random weights and teaches nothing.
    Released checkpoints often have no optimizer. There, a head whose bias is 0 everywhere, as nnU-Net initialises it,
    counts as never trained (ours). The finest head always counts as trained.
    """
    heads = list(getattr(getattr(network, "decoder", None), "seg_layers", []))[::-1]
    if not heads:
        return [True]
    states = (optimizer_state or {}).get("state")
    if not states:
        return [True] + [head.bias is None or bool(head.bias.any()) for head in heads[1:]]
    index_of = {id(parameter): index for index, parameter in enumerate(network.parameters())}
    return [True] + [index_of[id(head.weight)] in states for head in heads[1:]]
