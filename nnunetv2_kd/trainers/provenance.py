"""Where a student comes from, written into its checkpoint and beside it."""

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import yaml

from nnunetv2_kd import __version__
from nnunetv2_kd.methods.registry import source_of
from nnunetv2_kd.nnunet.files import write_text
from nnunetv2_kd.nnunet.model_folder import OPTIONS_FILE, RECORD_FILE
from nnunetv2_kd.trainers.conditions import training_conditions


def make_record(trainer: Any) -> dict[str, Any]:
    """Where the student of a trainer comes from, in plain values."""
    teacher = trainer.teacher
    sources = {name: str(source) for name in trainer.options.terms if (source := source_of(name)) is not None}
    return {
        "nnunetv2_kd": __version__,
        "trainer": type(trainer).__name__,
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "options": trainer.options.model_dump(mode="json"),
        "training": training_conditions(trainer),
        "student": trainer.plans_manager.plans["kd_student"],
        "teachers": [record.as_dict() for record in teacher.records()] if teacher is not None else [],
        **({"methods": sources} if sources else {}),
        **(teacher.facts() if teacher is not None else {}),
    }


def write_record(trainer: Any) -> None:
    """kd_record.json and kd_options.yaml in the fold's folder."""
    folder = Path(trainer.output_folder)
    write_text(folder / RECORD_FILE, json.dumps(make_record(trainer), indent=2) + "\n")
    options = trainer.options.model_dump(mode="json", exclude_unset=True)
    write_text(folder / OPTIONS_FILE, yaml.safe_dump(options, sort_keys=False))
