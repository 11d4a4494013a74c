"""Cascades: where the previous stage's segmentations come from."""

from collections.abc import Sequence
from pathlib import Path

from nnunetv2_kd.errors import KDError
from nnunetv2_kd.nnunet.model_folder import parse_model_name


def previous_stage_folder(own: str, teacher_model: Path, previous_stage: str, configuration: str) -> str:
    """The student's own previous stage where it was trained, else the teacher's.

    Args:
        own: where nnU-Net looks by itself.
        teacher_model: the teacher's model folder, ``<trainer>__<plans>__<configuration>``.
        previous_stage: for example ``3d_lowres``.
        configuration: for example ``3d_cascade_fullres``.
    """
    name = parse_model_name(teacher_model.name)
    if Path(own).is_dir() or name is None:
        return own
    previous = name._replace(configuration=previous_stage)
    of_teacher = teacher_model.parent / str(previous) / "predicted_next_stage" / configuration
    return str(of_teacher) if of_teacher.is_dir() else own


def check_previous_stage(folder: str, cases: Sequence[str], train_command: str) -> None:
    """Every case has a segmentation of the previous stage.

    Args:
        folder: where they are expected.
        cases: identifiers of this fold's training and validation cases.
        train_command: the line that makes them, for a fold F.

    Raises:
        KDError: says how many are missing and what to type.
    """
    present = {file.stem for file in Path(folder).glob("*")} if Path(folder).is_dir() else set()
    missing = [case for case in cases if case not in present]
    if missing:
        raise KDError(
            f"The cascade needs the previous stage's segmentation of every case in {folder}; {len(missing)} of "
            f"{len(cases)} are missing ({', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}). "
            f"Train the previous stage on all folds first: {train_command}"
        )
