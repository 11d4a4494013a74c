"""Cascades: where the previous stage's segmentations come from."""

import glob
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from nnunetv2_kd.errors import KDError, listing
from nnunetv2_kd.nnunet.files import sha256
from nnunetv2_kd.nnunet.model_folder import parse_model_name
from nnunetv2_kd.record import PreviousStageRecord
from nnunetv2_kd.trainers.command_line import restart_command


def previous_stage_folder(
    own: str, teacher_model: Path, previous_stage: str, configuration: str, cases: Sequence[str]
) -> str:
    """The student's own previous stage if it is complete; otherwise the teacher's if that is; otherwise the own.

    Args:
        own: where nnU-Net itself looks.
        teacher_model: the teacher's model folder, ``<trainer>__<plans>__<configuration>``.
        previous_stage: for example ``3d_lowres``.
        configuration: for example ``3d_cascade_fullres``.
        cases: the cases that are needed.
    """
    name = parse_model_name(teacher_model.name)
    if name is None or not missing_cases(own, cases):
        return own
    previous = name._replace(configuration=previous_stage)
    of_teacher = teacher_model.parent / str(previous) / "predicted_next_stage" / configuration
    complete = not missing_cases(str(of_teacher), cases)
    return str(of_teacher) if complete or (not Path(own).is_dir() and of_teacher.is_dir()) else own


def missing_cases(folder: str, cases: Sequence[str]) -> list[str]:
    """The cases of which a folder has no segmentation."""
    present = {file.stem for file in Path(folder).glob("*")} if Path(folder).is_dir() else set()
    return [case for case in cases if case not in present]


def content(folder: str, cases: Sequence[str]) -> str:
    """SHA-256 over the segmentations of these cases."""
    files = (file for case in sorted(cases) for file in sorted(Path(folder).glob(f"{glob.escape(case)}.*")))
    return hashlib.sha256("".join(f"{file.name} {sha256(file)}\n" for file in files).encode()).hexdigest()


def check_same_previous_stage(before: PreviousStageRecord | None, folder: str, cases: Sequence[str]) -> None:
    """Check that a training is resumed with the segmentations that it began with.

    Args:
        before: as recorded in the checkpoint; None if nothing is recorded.
        folder, cases: the segmentations that would be used now.

    Raises:
        KDError: if they are not the same.
    """
    if before is None:
        return
    now = content(folder, cases)
    if now != before.sha256:
        raise KDError(
            f"The training to resume began with other segmentations of the previous stage than those in {folder} now:"
            f"\n  until now, SHA-256: {before.sha256}\n  now, SHA-256:       {now}"
            f"\nPut the earlier ones back, or start again without --c:\n  {restart_command(nnUNet_kd_overwrite='1')}"
        )


def check_previous_stage(
    folder: str, cases: Sequence[str], splits: Sequence[Mapping[str, Sequence[str]]], train_command: str
) -> None:
    """Check that every case has a segmentation of the previous stage.

    Args:
        folder: where they are expected.
        cases: identifiers of this fold's training and validation cases.
        splits: of the dataset, a fold each.
        train_command: the command that makes those of a fold's validation cases, with ``{fold}`` for the fold.

    Raises:
        KDError: says how many are missing and what to type.
    """
    missing = missing_cases(folder, cases)
    if missing:
        lines = [train_command.format(fold=fold) for fold in folds_that_predict(missing, splits)]
        raise KDError(
            listing(
                f"The cascade needs the previous stage's segmentation of every case in {folder}; {len(missing)} of "
                f"{len(cases)} are missing ({', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}). "
                "A training of the previous stage writes those of its validation cases. Train it first:",
                lines,
            )
        )


def folds_that_predict(cases: Sequence[str], splits: Sequence[Mapping[str, Sequence[str]]]) -> list[int | str]:
    """Folds that have these cases among their validation cases, the first for each; ``all`` where a case is in none."""
    left, folds = set(cases), list[int | str]()
    for fold, split in enumerate(splits):
        if left & set(split["val"]):
            folds.append(fold)
            left -= set(split["val"])
    return ["all"] if left else folds
