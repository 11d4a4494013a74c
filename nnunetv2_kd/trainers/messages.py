"""Lines for the log about the student and its teacher."""

from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_kd.formatting import format_count
from nnunetv2_kd.networks.cost import network_cost
from nnunetv2_kd.record import TeacherLabelsRecord, TeacherRecord
from nnunetv2_kd.students.shrink import shrink_record
from nnunetv2_kd.teachers.teacher import Teacher

Plans = dict[str, Any]
POOR_DICE = 0.5


def about_student(plans: Plans, configuration: str, dataset_json: dict[str, Any], made_here: bool) -> str:
    """The student's size, and what determines it."""
    cost = network_cost(plans, configuration, dataset_json)
    record = shrink_record(plans)
    features = PlansManager(plans).get_configuration(configuration).network_arch_init_kwargs["features_per_stage"]
    how = "made by this trainer" if made_here else "read from the plans file"
    spacing = (record.spacing or {}).get(configuration)
    coarser = "" if spacing is None else f" at {' x '.join(f'{side:g}' for side in spacing)} mm"
    return (
        f"Student: {format_count(cost.params)} parameters, {format_count(cost.flops)}FLOPs per patch{coarser}, "
        f"channels {features} (width {record.width.get(configuration, 1):g} of {record.made_from}; {how})"
    )


def about_teachers(teacher: Teacher, student_params: int, student_fold: int | str) -> list[str]:
    """The teachers, with warnings if one is no larger than the student or has seen its validation cases."""
    return [
        *teacher.describe(),
        *(line for record in teacher.records() for line in _warnings(record, student_params, student_fold)),
    ]


def about_start(record: TeacherRecord, student_fold: int | str) -> list[str]:
    """The model that a student starts as a part of, with a warning if it has seen the student's validation cases."""
    return [f"The student starts as a part of {record}", *_seen_warning(record, student_fold)]


def about_labels(labels: TeacherLabelsRecord | None, validation: int) -> list[str]:
    """Whose labels the student is trained and validated on, if teachers made some of them.

    Args:
        labels: the labels by teachers; None if people made all labels.
        validation: how many validation cases there are.
    """
    if labels is None:
        return []
    models = ", ".join(f"{teacher.folder} (fold {teacher.fold})" for teacher in labels.teachers)
    lines = [f"{len(labels.cases)} training cases were not labelled by a person, but by {models}."]
    seen = [teacher.seen_validation_cases for teacher in labels.teachers]
    if labels.validation_cases:
        lines.append(
            f"WARNING: a teacher labelled {labels.validation_cases} of the {validation} validation cases: pseudo Dice "
            "and validation Dice are agreement with the teacher, not accuracy."
        )
    elif any(count != 0 for count in seen):
        known = "an unknown number" if None in seen else max(count for count in seen if count is not None)
        lines.append(
            f"WARNING: the labelling teachers were trained on {known} of the {validation} validation cases: validation "
            "Dice may be too good. This is recorded in the checkpoint."
        )
    return lines


def about_no_better(student: float, teacher: float | None) -> list[str]:
    """A note that the student is as good as its teacher, which may have nothing more to teach; empty while the teacher
    is better.

    Args:
        student: running mean of its pseudo Dice.
        teacher: pseudo Dice; None if not known.
    """
    if teacher is None or not student >= teacher > 0:
        return []
    return [
        f"NOTE: the student's pseudo Dice (running mean {student:.4f}) has reached its teacher's ({teacher:.4f}). A "
        "student may learn nothing more from a teacher that is no better. To find out, train the same student alone "
        "(-tr nnUNetTrainerKDBaseline)."
    ]


def _warnings(record: TeacherRecord, student_params: int, student_fold: int | str) -> list[str]:
    lines = []
    if student_params >= record.params:
        lines.append(
            f"WARNING: the student ({format_count(student_params)} parameters) is as large as its teacher "
            f"({format_count(record.params)}). Ask for a smaller one: student.width, params or flops in the options."
        )
    return [*lines, *_seen_warning(record, student_fold)]


def _seen_warning(record: TeacherRecord, student_fold: int | str) -> list[str]:
    lines = []
    if record.seen_validation_cases != 0:
        lines.append(f"WARNING: {_seen(record, student_fold)} This is recorded in the checkpoint.")
    return lines


def _seen(record: TeacherRecord, student_fold: int | str) -> str:
    differ = record.fold != str(student_fold)
    folds = f"the teacher is of fold {record.fold}, the student of fold {student_fold}: " if differ else ""
    if record.seen_validation_cases is not None:
        return (
            f"{folds}the teacher was trained on {record.seen_validation_cases} of this student's validation cases, so "
            "the student's validation Dice will be too good."
        )
    return (
        f"{folds}it is not known whether the teacher was trained on this student's validation cases, because there "
        "is no record of the cases that it used (no validation folder, log, or splits_final.json of its dataset). If "
        "it was, the student's validation Dice will be too good."
    )
