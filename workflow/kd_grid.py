"""The trainings that the workflow's config describes: checked before anything runs, in folders that never clash.

nnU-Net names a model's folder TRAINER__PLANS__CONFIGURATION. Two seeds, sizes or recipes of one trainer therefore need
plans of different names, which this module gives them.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from kd_config import Config, Dataset, Size, Teacher
from pydantic import ValidationError

from nnunetv2_kd.config import CheckedOptions, problems_of
from nnunetv2_kd.errors import KDError, listing
from nnunetv2_kd.trainers.options import Options

ROOT = Path(__file__).resolve().parents[1]
PLANNERS = {
    "nnUNetPlans": "ExperimentPlanner",
    "nnUNetResEncUNetMPlans": "nnUNetPlannerResEncM",
    "nnUNetResEncUNetLPlans": "nnUNetPlannerResEncL",
    "nnUNetResEncUNetXLPlans": "nnUNetPlannerResEncXL",
}
# Of a recipe; all else (teacher, size, epochs, seed) must be alike in all methods, so it is the grid's
RECIPE_KEYS = ("terms", "schedule", "combine")


@dataclass(frozen=True)
class Model:
    """What is trained once per fold.

    Attributes:
        dataset: name of its folder.
        trainer: ``-tr``.
        plans: ``-p``.
        configuration: as in the plans.
        folds: to train.
        made_from: the plans to shrink; None for a teacher.
        size: of a student; None for a teacher.
        options: text of the options file; empty where the trainer reads none.
        teachers: of a student: models, each with its fold where that is not the student's.
    """

    dataset: str
    trainer: str
    plans: str
    configuration: str
    folds: tuple[int | str, ...]
    made_from: str | None = None
    size: Size | None = None
    options: str = ""
    teachers: tuple[tuple["Model", int | str | None], ...] = ()

    @property
    def name(self) -> str:
        return f"{self.trainer}__{self.plans}__{self.configuration}"


@dataclass(frozen=True)
class Grid:
    """Everything that the workflow makes.

    Attributes:
        config: the checked config.
        teachers: by dataset and name.
        students: by dataset and name.
        planned: plans that nnU-Net's planner makes, by dataset.
    """

    config: Config
    teachers: dict[tuple[str, str], Model]
    students: dict[tuple[str, str], Model]
    planned: dict[str, str]

    @property
    def models(self) -> dict[tuple[str, str], Model]:
        return {**self.teachers, **self.students}

    @property
    def datasets(self) -> list[str]:
        return list(dict.fromkeys(model.dataset for model in self.models.values()))

    def configurations(self, dataset: str) -> list[str]:
        return list(dict.fromkeys(m.configuration for m in self.models.values() if m.dataset == dataset))


def make_grid(config: Config, raw: Path, preprocessed: Path) -> Grid:
    """
    Args:
        config: the checked config.
        raw: nnU-Net's folder of that name, to look datasets up.
        preprocessed: likewise.

    Raises:
        KDError: if a dataset, recipe or plans file is missing, or two models would be one folder.
    """
    teachers: dict[tuple[str, str], Model] = {}
    students: dict[tuple[str, str], Model] = {}
    for dataset in config.datasets:
        folder = dataset_folder(dataset.id, raw, preprocessed)
        of_dataset = {name: _teacher(config, teacher, dataset, folder) for name, teacher in config.teachers.items()}
        for teacher in of_dataset.values():
            _add(teacher, teachers)
        for student in _students(config, dataset, folder, of_dataset):
            if (folder, student.name) in {**teachers, **students}:
                raise KDError(
                    f"Two models would be written to {folder}/{student.name}. Two methods of one trainer need "
                    "options files or teachers of their own, and a dataset is named once per configuration."
                )
            students[folder, student.name] = student
    return Grid(config, teachers, students, _planned([*teachers.values(), *students.values()], preprocessed))


def dataset_folder(number: int, raw: Path, preprocessed: Path) -> str:
    """``4`` to ``Dataset004_Hippocampus``.

    Raises:
        KDError: if there is no such dataset, or more than one.
    """
    names = sorted({f.name for root in (raw, preprocessed) for f in root.glob(f"Dataset{number:03d}_*") if f.is_dir()})
    if len(names) == 1:
        return names[0]
    found = f"found {', '.join(names)}" if names else "there is none"
    raise KDError(f"datasets: expected one folder Dataset{number:03d}_NAME under {raw} or {preprocessed}; {found}.")


def check_unchanged(grid: Grid, results: Path) -> None:
    """What has been trained was trained with the options that the config has now. Otherwise ``--c`` would go on with
    other options from the old checkpoint.

    Raises:
        KDError: lists the models whose options have changed.
    """
    changed = []
    for model in grid.models.values():
        file, folder = options_file(grid.config, model), results / model.dataset / model.name
        others = [other for other in file.parent.glob(f"{model.name}.*.yaml") if other != file]
        if others and any(folder.glob("fold_*/checkpoint_*.pth")):
            before, now = (text.splitlines() for text in (others[0].read_text(), model.options))
            lost, new = ([line for line in a if line not in b] for a, b in ((before, now), (now, before)))
            changed.append(f"{folder}: trained with {', '.join(lost) or 'less'}; now {', '.join(new) or 'without'}")
    if changed:
        title = (
            "The config has other options now than these models were trained with. Undo the change, or give the "
            "changed method or size another name, or delete these folders to train them again:"
        )
        raise KDError(listing(title, changed))


def options_file(config: Config, model: Model) -> Path:
    """Named by its content as well, so that a changed config never meets an old file."""
    digest = hashlib.sha256(model.options.encode()).hexdigest()[:8]
    return config.output / "options" / model.dataset / f"{model.name}.{digest}.yaml"


def _teacher(config: Config, teacher: Teacher, dataset: Dataset, folder: str) -> Model:
    folds = config.folds if teacher.fold is None else (teacher.fold,)
    text = ""
    if teacher.options is not None:
        text = _text("teacher", teacher.options.model_dump(mode="json", exclude_unset=True))
    return Model(folder, teacher.trainer, teacher.plans or dataset.plans, dataset.configuration, folds, options=text)


def _add(teacher: Model, teachers: dict[tuple[str, str], Model]) -> None:
    """Several entries may name one model, each with another fold: teachers of the parts of a dataset."""
    key = teacher.dataset, teacher.name
    before = teachers.get(key, teacher)
    if before.options != teacher.options:
        raise KDError(f"Two teachers with different options would be written to {teacher.dataset}/{teacher.name}.")
    folds = tuple(dict.fromkeys([*before.folds, *teacher.folds]))
    teachers[key] = replace(teacher, folds=folds)


def _students(config: Config, dataset: Dataset, folder: str, teachers: dict[str, Model]) -> Iterator[Model]:
    for method_name, method in config.methods.items():
        names = method.teachers
        if names is None:
            names = tuple(config.teachers)[:1] if method.needs_teacher else ()
        taught = tuple((teachers[name], config.teachers[name].fold) for name in names)
        recipe = read_recipe(method.options)
        # A later method must not rename this one's models, so its own entry alone decides on the name
        suffix = f"_{method_name}" if method.options or method.teachers else ""
        for size_name, size in config.sizes.items():
            for seed in config.seeds:
                options = {**_teacher_options(taught), **recipe, **_set(config.training), "seed": seed}
                try:
                    Options.model_validate(options)
                except ValidationError as error:
                    title = f"methods.{method_name}: its options cannot be used:"
                    raise KDError(listing(title, problems_of(error))) from error
                yield Model(
                    folder,
                    method.trainer,
                    f"{dataset.plans}_{size_name}_s{seed}{suffix}",
                    dataset.configuration,
                    config.folds,
                    dataset.plans,
                    size,
                    _text(" ".join(size.flags()), options),
                    taught,
                )


def read_recipe(file: Path | None) -> dict[str, Any]:
    """What a recipe says of the method.

    Raises:
        KDError: if it cannot be read.
    """
    if file is None:
        return {}
    found = next((f for f in (file, ROOT / file) if f.is_file()), None)
    if found is None:
        present = ", ".join(sorted(f"configs/{f.name}" for f in (ROOT / "configs").glob("*.yaml")))
        raise KDError(f"methods: the options file {file} does not exist. Ready-made: {present}.")
    try:
        content = yaml.safe_load(found.read_text()) or {}
    except yaml.YAMLError as error:
        raise KDError(f"methods: the options file {found} is not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise KDError(f"methods: the options file {found} must hold keys such as 'terms:'.")
    return {key: content[key] for key in RECIPE_KEYS if key in content}


def _teacher_options(teachers: tuple[tuple[Model, int | str | None], ...]) -> dict[str, Any]:
    entries = [
        {"trainer": model.trainer, "plans": model.plans, **({} if fold is None else {"fold": fold})}
        for model, fold in teachers
    ]
    if len(entries) > 1:
        return {"teachers": entries}
    return {"teacher": entries[0]} if entries else {}


def _set(options: CheckedOptions) -> dict[str, Any]:
    return options.model_dump(exclude_none=True)


def _text(size: str, options: dict[str, Any]) -> str:
    title = f"# Written by the workflow from its config. Size: {size or 'default'}\n"
    return title + yaml.safe_dump(options, sort_keys=False)


def _planned(models: list[Model], preprocessed: Path) -> dict[str, str]:
    """One plans file per dataset is made here: plans of one dataset can share preprocessed data, which a second
    preprocessing would rewrite while trainings read it."""
    planned: dict[str, str] = {}
    for model in models:
        plans = model.made_from or model.plans
        if (preprocessed / model.dataset / f"{plans}.json").is_file() or planned.get(model.dataset) == plans:
            continue
        if plans not in PLANNERS or model.dataset in planned:
            raise KDError(
                f"The plans {plans} of {model.dataset} do not exist, and the workflow does not make them: it makes one "
                f"of {', '.join(PLANNERS)} per dataset. Make them first: nnUNetv2_plan_and_preprocess or nnUNetv2_kd "
                "plan."
            )
        planned[model.dataset] = plans
    return planned
