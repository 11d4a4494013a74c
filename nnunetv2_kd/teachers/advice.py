"""What to type where a teacher's plans and a student's do not go together."""

from pathlib import Path
from typing import Any

from nnunetv2.paths import nnUNet_preprocessed, nnUNet_results

from nnunetv2_kd.errors import KDError, listing
from nnunetv2_kd.nnunet.datasets import dataset_id
from nnunetv2_kd.nnunet.files import read_json
from nnunetv2_kd.nnunet.model_folder import CheckpointPath, checkpoints_in, parse_model_name
from nnunetv2_kd.nnunet.plans import Plans
from nnunetv2_kd.record import is_coarser
from nnunetv2_kd.teachers.check import check_same_task
from nnunetv2_kd.teachers.find import StudentIdentity

DatasetJson = dict[str, Any]
TRAINED_TO_THE_END = "checkpoint_final.pth"


def fits(teacher: tuple[Plans, DatasetJson], student: tuple[Plans, DatasetJson], configuration: str) -> bool:
    """Whether a model of these plans could teach, in the student's configuration."""
    try:
        check_same_task(teacher, student, configuration, configuration)
    except (KDError, KeyError, TypeError, ValueError):  # plans of any kind lie beside the ones that fit
        return False
    return True


def moved_plans(student: StudentIdentity, plans: Plans, dataset_json: DatasetJson, teachers_plans: str) -> list[str]:
    """Lines for a student of plans that were moved here from another dataset: a teacher that is trained here with the
    plans of that name does not fit it.

    Args:
        student: who looks for a teacher.
        plans, dataset_json: the student's.
        teachers_plans: name of the plans that its teacher would be trained with.

    Returns:
        Nothing where these plans fit the student's.
    """
    if is_coarser(plans):  # another spacing is what it is made for
        return []
    file = Path(nnUNet_preprocessed) / student.dataset_name / f"{teachers_plans}.json"
    if file.is_file() and fits((read_json(file), dataset_json), (plans, dataset_json), student.configuration):
        return []
    missing = "does not exist" if not file.is_file() else "has another spacing, normalisation or stride"
    lines = [
        f"A model of {teachers_plans} trained on {student.dataset_name} does not fit: {file} {missing}. The student's "
        f"plans {plans['plans_name']} were made from plans of that name of another dataset, or of an older planning."
    ]
    models = [
        f"teacher: {{folder: '{path.folder}', fold: {path.fold}}}" for path in _fitting(plans, dataset_json, student)
    ]
    if models:
        return [*lines, listing("These trained models fit; name one in the options file:", models)]
    sources = [
        source
        for source in sorted(Path(nnUNet_preprocessed).glob(f"*/{teachers_plans}.json"))
        if source != file and fits((read_json(source), dataset_json), (plans, dataset_json), student.configuration)
    ]
    if not sources:
        return [*lines, "No trained model and no plans under nnUNet_preprocessed fit it."]
    return [*lines, *moving(sources[0], student, "nnUNetTrainer")]


def moving(source: Path, student: StudentIdentity, trainer: str) -> list[str]:
    """The lines that bring another dataset's plans to the student's and train a teacher with them."""
    here = dataset_id(student.dataset_name)
    name = f"{source.stem}From{dataset_id(source.parent.name)}"
    return [
        "Train one with these plans on this dataset:",
        f"  nnUNetv2_move_plans_between_datasets -s {source.parent.name} -t {here} -sp {source.stem} -tp {name}",
        f"  nnUNetv2_preprocess -d {here} -plans_name {name} -c {student.configuration}",
        f"  nnUNetv2_train {here} {student.configuration} {student.fold} -p {name} -tr {trainer}",
        f"and name it in the options file: teacher: {{plans: {name}}}",
    ]


def plans_of_teacher(path: CheckpointPath, plans: Plans, configuration: str, student: StudentIdentity) -> list[str]:
    """The lines with which a student gets the plans of a teacher, whose voxels are others.

    Args:
        path: where the teacher is.
        plans: the teacher's.
        configuration: the teacher's.
        student: whom it should teach.
    """
    source = Path(nnUNet_preprocessed) / plans["dataset_name"] / f"{plans['plans_name']}.json"
    here = dataset_id(student.dataset_name)
    lines = ["To train a student that looks at the voxels that the teacher looks at, with the teacher's plans:"]
    name = plans["plans_name"]
    if plans["dataset_name"] != student.dataset_name:
        name = f"{name}From{dataset_id(plans['dataset_name'])}"
        if not source.is_file():
            written = f"cp '{path.folder / 'plans.json'}'"
            if path.archive is not None:
                written = f"unzip -p '{path.archive}' '{path.place_in_archive}/plans.json' >"
            lines.append(f"  mkdir -p '{source.parent}' && {written} '{source}'")
        lines.append(
            f"  nnUNetv2_move_plans_between_datasets -s {plans['dataset_name']} -t {here} -sp {source.stem} -tp {name}"
        )
    elif not source.is_file():
        return []
    return [
        *lines,
        f"  nnUNetv2_preprocess -d {here} -plans_name {name} -c {configuration}",
        f"and the training again with {configuration}, -p {name} and the teacher in the options file: "
        f"teacher: {{folder: '{path.where}', fold: {path.fold}}}",
    ]


def _fitting(plans: Plans, dataset_json: DatasetJson, student: StudentIdentity) -> list[CheckpointPath]:
    """Models under ``nnUNet_results`` that could teach, of the student's fold where they have it; students themselves
    only where there is nothing else."""
    students: list[CheckpointPath] = []
    others: list[CheckpointPath] = []
    for file in sorted(Path(nnUNet_results).glob("*/*__*__*/plans.json")):
        name = parse_model_name(file.parent.name)
        if name is None or name.configuration != student.configuration or not (file.parent / "dataset.json").is_file():
            continue
        model = (read_json(file), read_json(file.with_name("dataset.json")))
        if fits(model, (plans, dataset_json), student.configuration):
            done = [path for path in checkpoints_in(file.parent) if path.checkpoint_name == TRAINED_TO_THE_END]
            found = [path for path in done if str(path.fold) == str(student.fold)] or done[:1]
            (students if "kd_student" in model[0] else others).extend(found)
    return others or students
