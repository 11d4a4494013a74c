"""The end of a training's log: how good the student is compared with its teacher and the student alone, and
the next step."""

import json
from pathlib import Path

from nnunetv2_kd.errors import KDError
from nnunetv2_kd.nnunet.datasets import dataset_id
from nnunetv2_kd.nnunet.files import read_json
from nnunetv2_kd.nnunet.model_folder import RECORD_FILE, ModelName, fold_name, parse_model_name
from nnunetv2_kd.record import Record, read_record
from nnunetv2_kd.trainers.baseline import ALONE_TRAINER, baseline_command, variant_suffix


def result_message(fold: Path) -> str:
    """The paragraph at the end of the log; empty if nothing was validated.

    Args:
        fold: the student's folder, ``DATASET/TRAINER__PLANS__CONFIGURATION/fold_0``.
    """
    dice, name = validation_dice(fold), parse_model_name(fold.parent.name)
    if dice is None or name is None:
        return ""
    record = _record(fold)
    parts = [f"Validation Dice of fold {fold_name(fold)}: {dice:.4f} of this student"]
    parts += [f"{value:.4f} of its teacher" for value in _dice_of_teachers(record, fold)]
    dataset = dataset_id(fold.parents[1].name)
    compare = f"nnUNetv2_kd leaderboard -d {dataset}"
    if record is None or (not record.teachers and record.stored is None):
        return f"{parts[0]}. Compare all models:\n  {compare}"
    of_alone = _dice_of_alone(record, fold, name)
    if of_alone is not None:
        parts.append(f"{of_alone:.4f} of the same student alone")
        return f"{', '.join(parts)}. Compare them case by case:\n  {compare}"
    line = baseline_command(record, fold)
    return f"{', '.join(parts)}. To see what the teacher adds, train the same student alone:\n  {line}"


def validation_dice(fold: Path) -> float | None:
    """Mean Dice of a fold's validation by nnU-Net; None if there is none."""
    try:
        return float(read_json(fold / "validation" / "summary.json")["foreground_mean"]["Dice"])
    except (KDError, KeyError, TypeError, ValueError):
        return None


def _dice_of_alone(record: Record, fold: Path, name: ModelName) -> float | None:
    """Dice of the same student trained alone, for as long and with the same seed, under any name."""
    pattern = f"{ALONE_TRAINER}{variant_suffix(name.trainer)}__*__{name.configuration}/{fold.name}"
    for other in sorted(fold.parents[1].glob(pattern)):
        its = _record(other)
        if its is None or (its.training, its.student) != (record.training, record.student):
            continue
        if its.options.get("seed") == record.options.get("seed") and (dice := validation_dice(other)) is not None:
            return dice
    return None


def _dice_of_teachers(record: Record | None, fold: Path) -> list[float]:
    """Dice of the teachers that were validated on the same cases after their training."""
    teachers = record.teachers if record is not None else ()
    same = [(Path(t.folder) / f"fold_{t.fold}", t.checkpoint) for t in teachers if t.seen_validation_cases == 0]
    return [
        dice
        for place, checkpoint in same
        if (dice := validation_dice(place)) is not None and not _is_older(place / "validation", place / checkpoint)
    ]


def _is_older(validation: Path, checkpoint: Path) -> bool:
    """Whether a validation is older than the checkpoint beside it."""
    return checkpoint.is_file() and (validation / "summary.json").stat().st_mtime < checkpoint.stat().st_mtime


def _record(fold: Path) -> Record | None:
    try:
        return read_record(json.loads((fold / RECORD_FILE).read_text()), str(fold / RECORD_FILE))
    except (OSError, ValueError, KDError):
        return None
