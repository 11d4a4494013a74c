"""Where the teacher is: by default the model that the user trained with plain nnU-Net for the same fold."""

from dataclasses import dataclass
from pathlib import Path

from nnunetv2.paths import nnUNet_results

from nnunetv2_kd.config import TeacherOptions
from nnunetv2_kd.errors import KDError, listing

Fold = int | str


@dataclass(frozen=True)
class Student:
    """What the search for a teacher must know of the student."""

    dataset_name: str
    plans_name: str
    configuration: str
    fold: Fold


@dataclass(frozen=True)
class TeacherPath:
    """One trained model: its folder (with plans.json and dataset.json), a fold, and a checkpoint's file name."""

    folder: Path
    fold: Fold
    checkpoint_name: str

    @property
    def checkpoint(self) -> Path:
        return self.folder / f"fold_{self.fold}" / self.checkpoint_name


def dataset_id(dataset_name: str) -> str:
    """``Dataset004_Hippocampus`` to ``4``, as users type it."""
    return str(int(dataset_name[len("Dataset") :].split("_")[0]))


def teacher_folder(options: TeacherOptions, student: Student) -> Path:
    """The model folder that the options name, whether it exists or not."""
    if options.folder is not None:
        return options.folder
    plans = options.plans or student.plans_name
    configuration = options.configuration or student.configuration
    return Path(nnUNet_results) / student.dataset_name / f"{options.trainer}__{plans}__{configuration}"


def find_teacher(options: TeacherOptions, student: Student) -> TeacherPath:
    """The teacher that the options name.

    Raises:
        KDError: where it does not exist. Lists the models of this dataset that do, and the line that trains it.
    """
    folder = teacher_folder(options, student)
    fold = student.fold if options.fold is None else options.fold
    path = TeacherPath(folder, fold, options.checkpoint)
    missing = [
        f for f in (path.folder / "plans.json", path.folder / "dataset.json", path.checkpoint) if not f.is_file()
    ]
    if missing:
        raise KDError(_no_teacher(path, missing, options, student))
    return path


def trained_models(dataset_name: str) -> list[TeacherPath]:
    """Every model of a dataset under ``nnUNet_results``, one entry per fold and checkpoint file, sorted."""
    root = Path(nnUNet_results) / dataset_name
    return [
        TeacherPath(checkpoint.parents[1], checkpoint.parent.name.removeprefix("fold_"), checkpoint.name)
        for checkpoint in sorted(root.glob("*__*__*/fold_*/checkpoint_*.pth"))
    ]


def _no_teacher(path: TeacherPath, missing: list[Path], options: TeacherOptions, student: Student) -> str:
    found = [f"{m.folder.name}, fold {m.fold}, {m.checkpoint_name}" for m in trained_models(student.dataset_name)]
    lines = [f"No teacher: {missing[0]} does not exist."]
    if options.folder is None:
        trainer, plans, configuration = path.folder.name.split("__")
        command = f"nnUNetv2_train {dataset_id(student.dataset_name)} {configuration} {path.fold}"
        command += "" if plans == "nnUNetPlans" else f" -p {plans}"
        command += "" if trainer == "nnUNetTrainer" else f" -tr {trainer}"
        lines.append(f"Train it with: {command}")
    lines.append("or name another under 'teacher:' in the options file that nnUNet_kd_config points to.")
    title = f"Models of {student.dataset_name} that exist under {nnUNet_results}:"
    lines.append(listing(title, found) if found else f"No model of {student.dataset_name} exists yet.")
    return "\n".join(lines)
