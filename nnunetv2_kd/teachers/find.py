"""Find the teacher: by default, the model that the user trained with plain nnU-Net for the same fold."""

from dataclasses import dataclass
from pathlib import Path

from nnunetv2.paths import nnUNet_results

from nnunetv2_kd.config import TeacherOptions
from nnunetv2_kd.errors import KDError, listing
from nnunetv2_kd.networks.build import find_trainer
from nnunetv2_kd.nnunet.datasets import dataset_id, device_flag
from nnunetv2_kd.nnunet.model_folder import (
    FINAL,
    CheckpointPath,
    Fold,
    ModelName,
    checkpoints_in,
    checkpoints_of,
    parse_model_name,
)
from nnunetv2_kd.nnunet.model_zip import unpack


@dataclass(frozen=True)
class StudentIdentity:
    """What the search for a teacher must know about the student."""

    dataset_name: str
    plans_name: str
    configuration: str
    fold: Fold


def teacher_folder(options: TeacherOptions, student: StudentIdentity) -> Path:
    """The model folder that the options name, whether it exists or not."""
    if options.folder is not None:
        return options.folder
    plans = options.plans or student.plans_name
    configuration = options.configuration or student.configuration
    return Path(nnUNet_results) / student.dataset_name / str(ModelName(options.trainer, plans, configuration))


def find_teacher(options: TeacherOptions, student: StudentIdentity) -> CheckpointPath:
    """The teacher that the options name.

    Raises:
        KDError: if it does not exist. Lists the models of this dataset that do, and the command that trains it.
    """
    folder = teacher_folder(options, student)
    fold = student.fold if options.fold is None else options.fold
    if folder.is_file():
        return unpack(folder, student.configuration, fold, options.checkpoint)
    path = CheckpointPath(folder, fold, options.checkpoint)
    if path.missing_files:
        raise KDError(_no_teacher(path, options, student))
    return path


def _no_teacher(path: CheckpointPath, options: TeacherOptions, student: StudentIdentity) -> str:
    lines = [f"No teacher: {path.missing_files[0]} does not exist."]
    if options.folder is not None:
        return "\n".join([*lines, *_in_folder(path.folder)])
    found = [f"{m.folder.name}, fold {m.fold}, {m.checkpoint_name}" for m in checkpoints_of(student.dataset_name)]
    name = parse_model_name(path.folder.name)
    if name is not None:
        trainer, plans, configuration = name
        command = f"nnUNetv2_train {dataset_id(student.dataset_name)} {configuration} {path.fold}"
        command += "" if plans == "nnUNetPlans" else f" -p {plans}"
        command += "" if trainer == "nnUNetTrainer" else f" -tr {trainer}"
        begun = [f for f in found if f.startswith(f"{path.folder.name}, fold {path.fold}, ")]
        go_on = " --c" if begun and path.checkpoint_name == FINAL else ""
        if find_trainer(trainer) is None and not begun:
            lines.append(f"There is no trainer {trainer} either: is its name spelt right?")
        else:
            lines.append(f"{'Finish its training' if go_on else 'Train it'} with: {command}{device_flag()}{go_on}")
    lines.append("or name another under 'teacher:' in the options file that nnUNet_kd_config points to.")
    title = f"Models of {student.dataset_name} that exist under {nnUNet_results}:"
    lines.append(listing(title, found) if found else f"No model of {student.dataset_name} exists yet.")
    return "\n".join(lines)


def _in_folder(folder: Path) -> list[str]:
    """What the user may have meant, if the named folder holds no teacher."""
    checkpoints = [f"{{fold: {path.fold}, checkpoint: {path.checkpoint_name}}}" for path in checkpoints_in(folder)]
    if checkpoints:
        return [listing(f"Name a checkpoint of {folder} under 'teacher:', after the folder:", checkpoints)]
    if folder.name.startswith("fold_"):
        return [f"Name the model's folder, not its fold's: teacher: {{folder: '{folder.parent}'}}"]
    models = sorted(file.parent for file in folder.glob("*/plans.json"))
    if models:
        return [listing("Name one of the models in it:", [f"teacher: {{folder: '{model}'}}" for model in models])]
    return [
        f"{folder} is not a model folder of nnU-Net. Such a folder has plans.json, dataset.json and fold_0 to fold_4 "
        "or fold_all, with a checkpoint_final.pth in each. A zip from nnUNetv2_export_model_to_zip can be named "
        "directly."
    ]
