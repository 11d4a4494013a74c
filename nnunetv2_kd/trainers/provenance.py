"""Record where a student comes from, in its checkpoint and in files beside it."""

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import torch
import yaml

from nnunetv2_kd import __version__
from nnunetv2_kd.methods.registry import source_of
from nnunetv2_kd.networks.cpu_mode import processor_name
from nnunetv2_kd.nnunet.files import write_text
from nnunetv2_kd.nnunet.model_folder import OPTIONS_FILE, RECORD_FILE
from nnunetv2_kd.nnunet.teacher_labels import KEY, labelling_teachers, teacher_labelled
from nnunetv2_kd.record import Record, TeacherLabelsRecord, TeacherRecord, environment_on
from nnunetv2_kd.students.shrink import shrink_record
from nnunetv2_kd.teachers.seen import TrainingCases
from nnunetv2_kd.trainers.conditions import training_conditions


def make_record(trainer: Any) -> Record:
    """Where the student of a trainer comes from."""
    teacher = trainer.teacher
    return Record(
        nnunetv2_kd=__version__,
        trainer=type(trainer).__name__,
        command=shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        options=trainer.options.model_dump(mode="json"),
        student=shrink_record(trainer.plans_manager.plans),
        teachers=tuple(teacher.records()) if teacher is not None else (),
        stored=teacher.stored_record() if teacher is not None else None,
        methods={name: str(source) for name in trainer.options.terms if (source := source_of(name)) is not None},
        training=training_conditions(trainer),
        environment=environment_on(_device_name(trainer.device)),
        teacher_labels=teacher_labels(trainer),
        start=trainer.began_as_part_of,
        previous_stage=trainer.previous_stage,
    )


def teacher_labels(trainer: Any) -> TeacherLabelsRecord | None:
    """The trainer's cases that a teacher labelled; None if there are none."""
    labelled = teacher_labelled(trainer.dataset_json)
    if not labelled:
        return None
    training, validation = trainer.do_split()
    dataset = trainer.dataset_json[KEY]["of_dataset"]
    return TeacherLabelsRecord(
        cases=tuple(case for case in training if case in labelled),
        validation_cases=sum(case in labelled for case in validation),
        teachers=tuple(
            _labelling(teacher, dataset, validation) for teacher in labelling_teachers(trainer.dataset_json)
        ),
    )


def _labelling(teacher: dict[str, Any], dataset: str, validation: list[str]) -> TeacherRecord:
    """The record of a teacher that labelled cases.

    Args:
        teacher: its entry in dataset.json; without ``training_cases``, the cases that it was trained on are not known.
        dataset: the dataset of the labelled cases.
        validation: the student's validation cases.
    """
    known = teacher.get("training_cases")
    values = {key: value for key, value in teacher.items() if key != "training_cases"}
    seen = None if known is None else TrainingCases.from_dict(known).seen(dataset, validation)
    return TeacherRecord(**values, seen_validation_cases=seen)


def write_record(trainer: Any) -> None:
    """Write kd_record.json and kd_options.yaml into the fold's folder."""
    folder = Path(trainer.output_folder)
    write_text(folder / RECORD_FILE, make_record(trainer).as_json())
    write_text(folder / OPTIONS_FILE, options_as_file(trainer))


def options_as_file(trainer: Any) -> str:
    """Every option in force, including defaults, as a file that gives the same student again. Options without effect
    are left out, such as the teacher of a student that was trained alone."""
    options = trainer.options
    dropped = {"cpu_bfloat16"} if options.cpu_speed is not None or not options.cpu_bfloat16 else set()
    needs_teacher = trainer.names_teacher or options.student.start is not None
    if options.stored_teacher is not None or options.teachers is not None or not needs_teacher:
        dropped.add("teacher")
    if options.teachers is None:
        dropped.add("combine")
    values = options.model_dump(mode="json", exclude_none=True, exclude=dropped)
    for teacher in [values.get("teacher", {}), *values.get("teachers", ())]:
        if "folder" in teacher:  # it already determines these
            teacher.pop("trainer", None)
    training = training_conditions(trainer)
    title = (
        "# All options in force. To train the same again: nnUNet_kd_config=THIS_FILE before the same command.\n"
        f"# Optimizer: {json.dumps(training.optimizer)}; batch size {training.batch_size}; computed in "
        f"{training.precision}.\n"
    )
    return title + yaml.safe_dump(values, sort_keys=False)


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return processor_name() if device.type == "cpu" else device.type
