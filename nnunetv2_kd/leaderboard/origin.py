"""How each model was made, who its teacher is, and the same student without a teacher."""

import contextlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nnunetv2_kd.nnunet.files import sha256
from nnunetv2_kd.nnunet.trained_models import TrainedModel

STOCK, TEACHER, ALONE, DISTILLED = "nnU-Net", "teacher", "student alone", "student distilled"
ALONE_TRAINER = "nnUNetTrainerKDBaseline"


def teachers_of(models: Sequence[TrainedModel]) -> dict[str, str]:
    """The teacher of every distilled model that is among the models itself, told by the checkpoint's SHA-256: folders
    are moved and renamed, contents are not.

    Returns:
        Name of the student to name of the teacher.
    """
    wanted = {teacher["checkpoint"] for model in models for teacher in _teacher_records(model)}
    owners = {
        sha256(file): model.name
        for model in models
        for fold in model.folds
        for file in sorted(fold.folder.glob("checkpoint_*.pth"))
        if file.name in wanted
    }
    found = {}
    for model in models:
        names = {owners.get(teacher["sha256"]) for teacher in _teacher_records(model)}
        if len(names) == 1 and (name := names.pop()) is not None:
            found[model.name] = name
    return found


def kind(model: TrainedModel, teachers: Sequence[str]) -> str:
    """What a model is, in words.

    Args:
        model: the model.
        teachers: names of the models that teach others.
    """
    if model.name in teachers:
        return TEACHER
    if not model.record:
        return STOCK
    return DISTILLED if _teacher_records(model) else ALONE


def alone_of(model: TrainedModel, models: Sequence[TrainedModel]) -> TrainedModel | None:
    """The same student without a teacher: same configuration, network and epochs suffix, and the same plans file; else
    plans of another name trained with the same seed and as long. None where there is none."""
    alone = [
        other
        for other in models
        if other.trainer == ALONE_TRAINER + _suffix(model.trainer)
        and other.configuration == model.configuration
        and _network(other) == _network(model)
        and not _teacher_records(other)
    ]
    same_plans = [other for other in alone if other.plans_name == model.plans_name]
    as_long = [other for other in alone if _training(other) == _training(model)]
    return next(iter(same_plans or as_long), None)


def budget(model: TrainedModel) -> int | None:
    """Iterations that a model was trained for; None where its record does not tell."""
    options = model.record.get("options", {})
    epochs = next((fold.epoch for fold in model.folds if fold.epoch is not None), None)
    if epochs is None or "iterations_per_epoch" not in options:
        return None
    return epochs * (options["iterations_per_epoch"] or 250)  # nnU-Net's own number where the option is not set


def seen_cases(model: TrainedModel) -> str:
    """Which folds' teachers were trained on validation cases, in words; empty where none was."""
    told = []
    for fold in model.folds:
        seen = [teacher.get("seen_validation_cases") for teacher in fold.record.get("teachers", ())]
        if any(count != 0 for count in seen):
            known = max((count for count in seen if count is not None), default=0)
            told.append(f"fold {fold.name}: {'an unknown number' if None in seen else known}")
    return ", ".join(told)


def made(model: TrainedModel) -> list[tuple[str, str]]:
    """How a model was made, as pairs of what and value, for people to read."""
    facts = [("folder", str(model.folder)), ("configuration", model.configuration)]
    record = model.record
    if not record:
        facts.append(("made by", f"{model.trainer} of stock nnU-Net; no record of a distillation"))
    else:
        facts.append(("command", str(record.get("command", "not recorded"))))
        facts.append(("options", json.dumps(_without_nothing(record.get("options", {})), ensure_ascii=False)))
        student = record.get("student") or {}
        facts.append(("plans made from", f"{student.get('made_from')}, width {student.get('width')}"))
    for fold in model.folds:
        facts.append(
            (f"fold {fold.name}", fold.problem or f"{fold.epoch} epochs, {_versions(fold.folder, fold.record)}")
        )
        for teacher in fold.record.get("teachers", ()):
            told = f"{teacher['folder']}, fold {teacher['fold']}, {teacher['checkpoint']}, SHA-256 {teacher['sha256']}"
            facts.append((f"teacher of fold {fold.name}", told))
        if "stored" in fold.record:
            stored = fold.record["stored"]
            facts.append((f"stored teacher of fold {fold.name}", f"{stored['folder']}, by: {stored['command']}"))
    return facts


def _teacher_records(model: TrainedModel) -> list[dict[str, Any]]:
    return [teacher for fold in model.folds for teacher in fold.record.get("teachers", ())]


def _training(model: TrainedModel) -> list[Any]:
    options = model.record.get("options", {})
    return [options.get(key) for key in ("epochs", "iterations_per_epoch", "seed")]


def _suffix(trainer: str) -> str:
    found = re.search(r"_\d+epochs?$", trainer)
    return found[0] if found else ""


def _network(model: TrainedModel) -> Any:
    return model.plans["configurations"].get(model.configuration, {}).get("architecture")


def _without_nothing(options: Any) -> Any:
    """The options that are set, which is what one would write into an options file."""
    if not isinstance(options, dict):
        return options
    kept = {key: _without_nothing(value) for key, value in options.items() if value is not None}
    return {key: value for key, value in kept.items() if value != {}}


def _versions(folder: Path, record: dict[str, Any]) -> str:
    versions = [f"nnunetv2_kd {record['nnunetv2_kd']}"] if "nnunetv2_kd" in record else []
    with contextlib.suppress(OSError, ValueError, KeyError):  # nnU-Net writes the file at the start of every training
        versions.append(f"torch {json.loads((folder / 'debug.json').read_text())['torch_version']}")
    return ", ".join(versions) or "versions not recorded"
