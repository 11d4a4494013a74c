"""What to type if a teacher's plans and a student's do not fit together."""

import shlex
from copy import deepcopy
from pathlib import Path
from typing import Any

from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw, nnUNet_results
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_kd.errors import KDError, listing
from nnunetv2_kd.nnunet.datasets import dataset_id, device_flag
from nnunetv2_kd.nnunet.files import read_json
from nnunetv2_kd.nnunet.model_folder import FINAL, CheckpointPath, checkpoints_in, parse_model_name
from nnunetv2_kd.nnunet.plans import Plans
from nnunetv2_kd.record import is_coarser
from nnunetv2_kd.teachers.check import channel_meanings, channels, check_same_task, same_labels
from nnunetv2_kd.teachers.find import StudentIdentity
from nnunetv2_kd.teachers.label_map import Named, label_words, structures_of
from nnunetv2_kd.teachers.stored.own_space import match_channels

DatasetJson = dict[str, Any]


def can_teach(teacher: tuple[Plans, DatasetJson], student: tuple[Plans, DatasetJson], configuration: str) -> bool:
    """Whether a model of these plans could teach, in the student's configuration."""
    try:
        check_same_task(teacher, student, configuration, configuration)
    except Exception:  # the folder may hold plans of any kind
        return False
    return True


def _read(file: Path) -> dict[str, Any]:
    """Plans or dataset.json, needed only to print a command; empty if they cannot be read."""
    try:
        content = read_json(file)
    except KDError:
        return {}
    return content if isinstance(content, dict) else {}


def advise_moved_plans(
    student: StudentIdentity, plans: Plans, dataset_json: DatasetJson, teachers_plans: str
) -> list[str]:
    """What to type if the student's plans came from another dataset: a teacher trained on this dataset, with plans of
    the expected name, would not fit them.

    Args:
        student: the student that needs a teacher.
        plans, dataset_json: the student's.
        teachers_plans: name of the plans with which its teacher would be trained.

    Returns:
        Lines of text; none if those plans fit the student's.
    """
    if is_coarser(plans):  # made for another spacing than its teacher's
        return []
    file = Path(nnUNet_preprocessed) / student.dataset_name / f"{teachers_plans}.json"
    if file.is_file() and can_teach((_read(file), dataset_json), (plans, dataset_json), student.configuration):
        return []
    missing = "does not exist" if not file.is_file() else "has another spacing, normalisation or stride"
    lines = [
        f"A model of {teachers_plans} trained on {student.dataset_name} does not fit: {file} {missing}. The student's "
        f"plans {plans['plans_name']} were made from plans of that name from another dataset or an earlier planning."
    ]
    models = [
        f"teacher: {{folder: '{path.folder}', fold: {path.fold}}}"
        for path in _fitting_models(plans, dataset_json, student)
    ]
    if models:
        return [*lines, listing("These trained models fit; name one in the options file:", models)]
    sources = [
        source
        for source in sorted(Path(nnUNet_preprocessed).glob(f"*/{teachers_plans}.json"))
        if source != file and can_teach((_read(source), dataset_json), (plans, dataset_json), student.configuration)
    ]
    if not sources:
        return [*lines, "No trained model and no plans under nnUNet_preprocessed fit the student."]
    return [*lines, *move_plans_commands(sources[0], student, "nnUNetTrainer")]


def move_plans_commands(source: Path, student: StudentIdentity, trainer: str) -> list[str]:
    """The commands that move another dataset's plans to the student's dataset and train a teacher with them."""
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
    """The commands that give a student the plans of a teacher with other voxels.

    Args:
        path: where the teacher is.
        plans: the teacher's.
        configuration: the teacher's.
        student: the student to teach.
    """
    source = Path(nnUNet_preprocessed) / plans["dataset_name"] / f"{plans['plans_name']}.json"
    here = dataset_id(student.dataset_name)
    lines = ["To train a student that sees the same voxels as the teacher, use the teacher's plans:"]
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
        f"Then start the training again with {configuration}, -p {name} and the teacher in the options file: "
        f"teacher: {{folder: '{path.where}', fold: {path.fold}}}",
    ]


def store_commands(
    path: CheckpointPath,
    teacher: DatasetJson,
    wanted: tuple[Plans, DatasetJson],
    student: StudentIdentity,
    labels: Named | None,
) -> list[str]:
    """The commands that let a teacher with other voxels teach through a store; none if a store is impossible too.

    Args:
        path: where the teacher is.
        teacher: its dataset.json.
        wanted: the student's plans and dataset.json.
        student: the student to teach.
        labels: its labels as given in the options.
    """
    plans, dataset_json = wanted
    cascade = PlansManager(deepcopy(plans)).get_configuration(student.configuration).previous_stage_name is not None
    if cascade or not nnUNet_raw.is_set() or not (Path(nnUNet_raw) / student.dataset_name).is_dir():
        return []
    theirs, mine = channel_meanings(teacher, dataset_json)
    try:
        if theirs != mine:
            match_channels(channels(teacher), channels(dataset_json), {})
    except KDError as error:
        return [f"A store is not possible either. {error}"]
    named = labels if labels is not None else _equal_names(teacher, dataset_json)
    if not any(named.values()):
        return [_no_equal_name(teacher, dataset_json)]
    name = "from_raw"
    words = ["nnUNetv2_kd", "store", "-d", dataset_id(student.dataset_name), "-c", student.configuration]
    words += ["-p", plans["plans_name"], "--teacher_folder", path.where, "-f", str(path.fold), "-o", name]
    words += [] if path.checkpoint_name == FINAL else ["-chk", path.checkpoint_name]
    said = {label: own for label, own in named.items() if list(own) != [label]}
    words += label_words([said])
    return [
        "A teacher that sees other voxels can teach through a store, which runs it on the raw images:",
        f"  {shlex.join(words)}{device_flag()}",
        "Then start the training again, with this line in the options file instead of its teacher: stored_teacher: "
        f"{name}",
    ]


def named_labels(teacher: DatasetJson, student: DatasetJson) -> list[str]:
    """The line of the options file that matches labels by name; none if they are already matched."""
    if same_labels(teacher, student):
        return []
    named = _equal_names(teacher, student)
    if not any(named.values()):
        return [_no_equal_name(teacher, student)]
    shown = ", ".join(f"{label}: {'[' + ', '.join(own) + ']' if own else 'null'}" for label, own in named.items())
    lines = [f"To match them by name, add to the teacher in the options file: labels: {{{shown}}}"]
    if not all(named.values()):
        lines.append(f"(null: the student learns it from its own labels. The teacher's: {', '.join(_names(teacher))})")
    return lines


def _names(dataset_json: DatasetJson) -> list[str]:
    return structures_of(dataset_json).names


def _equal_names(teacher: DatasetJson, student: DatasetJson) -> dict[str, list[str]]:
    """The student's labels, each with the teacher's label of the same name, if there is one."""
    theirs = _names(teacher)
    return {name: [name] if name in theirs else [] for name in _names(student)}


def _no_equal_name(teacher: DatasetJson, student: DatasetJson) -> str:
    return (
        f"No label has the same name. For each of the student's {', '.join(_names(student))}, name the teacher's "
        f"labels that make it up: labels: {{{_names(student)[0]}: [THEIR_LABEL]}}. The teacher's: "
        f"{', '.join(_names(teacher))}."
    )


def _fitting_models(plans: Plans, dataset_json: DatasetJson, student: StudentIdentity) -> list[CheckpointPath]:
    """Models under ``nnUNet_results`` that could teach, with the student's fold if they have it. Models that are
    students themselves are listed only if there are no others."""
    students: list[CheckpointPath] = []
    others: list[CheckpointPath] = []
    for file in sorted(Path(nnUNet_results).glob("*/*__*__*/plans.json")):
        name = parse_model_name(file.parent.name)
        if name is None or name.configuration != student.configuration or not (file.parent / "dataset.json").is_file():
            continue
        model = (_read(file), _read(file.with_name("dataset.json")))
        if can_teach(model, (plans, dataset_json), student.configuration):
            done = [path for path in checkpoints_in(file.parent) if path.checkpoint_name == FINAL]
            found = [path for path in done if str(path.fold) == str(student.fold)] or done[:1]
            (students if "kd_student" in model[0] else others).extend(found)
    return others or students
