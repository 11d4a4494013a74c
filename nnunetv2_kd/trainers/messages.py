"""What a trainer tells the user about its student and its teacher, line by line."""

import math
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_kd.formatting import format_count
from nnunetv2_kd.networks.cost import network_cost
from nnunetv2_kd.teachers.teacher import Teacher, TeacherRecord

Plans = dict[str, Any]
POOR_DICE = 0.5


def about_student(plans: Plans, configuration: str, dataset_json: dict[str, Any], made_here: bool) -> str:
    """Its size, and where that comes from."""
    cost = network_cost(plans, configuration, dataset_json)
    record = plans["kd_student"]
    features = PlansManager(plans).get_configuration(configuration).network_arch_init_kwargs["features_per_stage"]
    how = "made by this trainer" if made_here else "read from the plans file"
    return (
        f"Student: {format_count(cost.params)} parameters, {format_count(cost.flops)}FLOPs per patch, channels "
        f"{features} (width {record['width'].get(configuration, 1):g} of "
        f"{record['made_from']}; {how})"
    )


def about_teacher(teacher: Teacher, student_params: int, student_fold: int | str) -> list[str]:
    """Which model teaches, and warnings where it is no larger than the student or has seen its validation cases."""
    record = teacher.record
    heads = f", {sum(teacher.trained_heads)} trained heads"
    return [f"Teacher: {_described(record)}{heads}", *_warnings(record, student_params, student_fold)]


def about_stored(
    stored: dict[str, Any], records: list[TeacherRecord], student_params: int, student_fold: int | str
) -> list[str]:
    """Where the answers come from, which models gave them, how good they are, and the warnings of `about_teacher`.

    Args:
        stored: see `StoredTeacher.as_dict`.
        records: of the models.
        student_params, student_fold: the student's.
    """
    mirrored = "mirrored" if stored["mirroring"] else "not mirrored"
    lines = [
        f"Stored teacher: {stored['folder']}, {len(records)} model{'s' if len(records) > 1 else ''}, {mirrored}; "
        f"largest error of a stored probability {stored['largest_error']:.4f}"
    ]
    for record in records:
        lines += [f"  {_described(record)}", *_warnings(record, student_params, student_fold)]
    return [*lines, *_judged("The stored teacher's Dice on the training cases", stored["training_dice"])]


def _described(record: TeacherRecord) -> str:
    return (
        f"{record.folder}, fold {record.fold}, {record.checkpoint} (SHA-256 {record.sha256}), trained by "
        f"{record.trainer} for {record.epoch} epochs, {format_count(record.params)} parameters"
    )


def _warnings(record: TeacherRecord, student_params: int, student_fold: int | str) -> list[str]:
    """Where a teacher is no larger than the student, or has seen its validation cases."""
    lines = []
    if student_params >= record.params:
        lines.append(
            f"WARNING: the student ({format_count(student_params)} parameters) is as large as its teacher "
            f"({format_count(record.params)}). Set student.width below 1 in the options."
        )
    if record.seen_validation_cases != 0:
        seen = "an unknown number" if record.seen_validation_cases is None else record.seen_validation_cases
        lines.append(
            f"WARNING: the teacher is of fold {record.fold}, the student of fold {student_fold}: the teacher was "
            f"trained on {seen} of this student's validation cases, so the student's validation Dice will be too "
            "good. This is recorded in the checkpoint."
        )
    return lines


def about_pseudo_dice(name: str, dice: list[float], batches: int) -> list[str]:
    """How good a teacher is on a few patches, with a warning where it is poor."""
    return _judged(f"{name.capitalize()}'s pseudo Dice on {batches} validation batches", dice)


def _judged(what: str, dice: list[float]) -> list[str]:
    lines = [f"{what}: {[round(d, 4) for d in dice]}"]
    present = [d for d in dice if not math.isnan(d)]
    mean = sum(present) / len(present) if present else math.nan
    if mean < POOR_DICE:
        lines.append(
            f"WARNING: that is poor (mean {mean:.2f}). A student cannot learn much from it. Is it the right "
            "checkpoint, and was it trained on these labels?"
        )
    return lines
