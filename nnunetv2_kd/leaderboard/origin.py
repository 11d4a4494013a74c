"""How each model was made, who its teacher is, and the same student without a teacher."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from nnunetv2_kd.leaderboard.equal_arms import describe_inequalities
from nnunetv2_kd.nnunet.files import sha256
from nnunetv2_kd.nnunet.trained_models import TrainedFold, TrainedModel, pick
from nnunetv2_kd.trainers.baseline import ALONE_TRAINER
from nnunetv2_kd.trainers.variants import split_name

STOCK, TEACHER, ALONE, DISTILLED = "nnU-Net", "teacher", "student alone", "student distilled"


@dataclass(frozen=True)
class Origin:
    """How a model relates to the others.

    Attributes:
        kind: `TEACHER` of another, `DISTILLED`, `ALONE` (trained by this package without a teacher) or `STOCK`.
        teacher: name of its teacher; None if it has none, or the teacher is not among the others.
        alone: for a distilled student, the same student without a teacher, trained under the same conditions; None if
            there is none.
        unequal: which students alone it is not compared with, and why, in words.
        several_teachers: whether more than one of the other models taught it.
    """

    kind: str
    teacher: str | None
    alone: TrainedModel | None
    unequal: tuple[str, ...] = ()
    several_teachers: bool = False

    @property
    def alone_name(self) -> str | None:
        return self.alone.name if self.alone is not None else None


def origins_of(models: Sequence[TrainedModel], teacher: str | None = None) -> dict[str, Origin]:
    """The origin of every model, by its name.

    Args:
        models: of one dataset.
        teacher: name of the teacher of all distilled students; None: taken from the checkpoints.

    Raises:
        KDError: if `teacher` names no model.
    """
    owners = find_teaching_models(models)
    teachers = teachers_of(models)
    if teacher is not None:
        chosen = pick([model for model in models if model.runs_in == models[0].runs_in], teacher, "--teacher")
        own = {m.runs_in: m.name for m in models if (m.folder, m.part) == (chosen.folder, chosen.part)}
        teachers = {m.name: own[m.runs_in] for m in models if m.name not in own.values() and m.teachers}
    teaching = [*teachers.values(), *(name for names in owners.values() for name in names)]
    kinds = {model.name: kind(model, teaching) for model in models}
    return {
        model.name: Origin(
            kind=kinds[model.name],
            teacher=teachers.get(model.name),
            alone=find_student_alone(model, models) if kinds[model.name] == DISTILLED else None,
            unequal=tuple(_unequal_notes(model, models)) if kinds[model.name] == DISTILLED else (),
            several_teachers=len(owners.get(model.name, ())) > 1,
        )
        for model in models
    }


def teachers_of(models: Sequence[TrainedModel]) -> dict[str, str]:
    """The teacher of every distilled model whose teacher is one of the models.

    Returns:
        The teacher's name, by the student's.
    """
    return {student: owners[0] for student, owners in find_teaching_models(models).items() if len(owners) == 1}


def find_teaching_models(models: Sequence[TrainedModel]) -> dict[str, list[str]]:
    """The models that taught each student, identified by their checkpoint's SHA-256, which stays the same if a folder
    is moved or renamed.

    Returns:
        The teachers' names by the student's, if all of them are among the models.
    """
    wanted = {teacher.checkpoint for model in models for teacher in model.teachers}
    owners = {
        (sha256(file), model.runs_in): model.name
        for model in models
        for fold in model.folds
        for file in sorted(fold.folder.glob("checkpoint_*.pth"))
        if file.name in wanted
    }
    found = {}
    for model in models:
        names = list(dict.fromkeys(owners.get((teacher.sha256, model.runs_in)) for teacher in model.teachers))
        if names and None not in names:
            found[model.name] = [name for name in names if name is not None]
    return found


def kind(model: TrainedModel, teachers: Sequence[str]) -> str:
    """What a model is, in words.

    Args:
        model: the model.
        teachers: names of the models that teach others.
    """
    if model.name in teachers:
        return TEACHER
    if model.record is None:
        return STOCK
    return DISTILLED if model.teachers else ALONE


def find_student_alone(model: TrainedModel, models: Sequence[TrainedModel]) -> TrainedModel | None:
    """The same student without a teacher, trained under the same conditions: same configuration, network, plans and
    suffixes of the trainer's name. If there is none, one with plans of another name that was trained as long, with the
    same seed if possible. Otherwise None."""
    alone = [other for other in _same_network_alone(model, models) if not _differences(model, other)]
    same_plans = [other for other in alone if other.plans_name == model.plans_name]
    same_seed = [other for other in alone if _training(other) == _training(model)]
    as_long = [other for other in alone if _training(other)[:-1] == _training(model)[:-1]]
    return next(iter(same_plans or same_seed or as_long), None)


def _same_network_alone(model: TrainedModel, models: Sequence[TrainedModel]) -> list[TrainedModel]:
    return [
        other
        for other in models
        if split_name(other.trainer) == (ALONE_TRAINER, split_name(model.trainer)[1])
        and other.configuration == model.configuration
        and other.runs_in == model.runs_in
        and _network(other) == _network(model)
        and not other.teachers
    ]


def _unequal_notes(model: TrainedModel, models: Sequence[TrainedModel]) -> Iterator[str]:
    for other in _same_network_alone(model, models):
        if differences := _differences(model, other):
            yield f"not compared with {other.name}, which was trained differently: {'; '.join(differences)}"


def _differences(model: TrainedModel, other: TrainedModel) -> list[str]:
    """What may have made one of the two stronger, as far as both records tell."""
    mine, others = (m.record.training if m.record is not None else None for m in (model, other))
    return describe_inequalities(mine, others) if mine is not None and others is not None else []


def iterations(model: TrainedModel) -> int | None:
    """Number of iterations that a model was trained for; None if neither its record nor nnU-Net's files tell."""
    fold = next((fold for fold in model.folds if fold.epoch is not None), None)
    if fold is None or fold.epoch is None:
        return None
    recorded = fold.record.iterations_per_epoch if fold.record is not None else None
    noted = str(fold.debug_information.get("num_iterations_per_epoch", ""))
    per_epoch = recorded or (int(noted) if noted.isdigit() else None)
    return fold.epoch * per_epoch if per_epoch is not None else None


def seen_cases(model: TrainedModel) -> str:
    """Which folds' teachers were trained on validation cases, in words; empty if none was."""
    folds = []
    for fold in model.folds:
        record = fold.record
        teachers = record.teachers if record else ()
        if record and record.teacher_labels and not record.teacher_labels.validation_cases:
            teachers += record.teacher_labels.teachers
        if record and record.start:
            teachers += (record.start,)
        seen = [teacher.seen_validation_cases for teacher in teachers]
        if any(count != 0 for count in seen):
            known = max((count for count in seen if count is not None), default=0)
            folds.append(f"fold {fold.name}: {'an unknown number' if None in seen else known}")
    return ", ".join(folds)


def provenance(model: TrainedModel) -> list[tuple[str, str]]:
    """How a model was made, as pairs of heading and text for a reader."""
    facts = [("folder", str(model.folder)), ("configuration", model.configuration)]
    record = model.record
    if record is None:
        facts.append(("made by", f"{model.trainer} of stock nnU-Net; no record of a distillation"))
    else:
        facts.append(("command", record.command))
        facts.append(("options", json.dumps(_without_nothing(record.options), ensure_ascii=False)))
        facts.append(("plans made from", f"{record.student.made_from}, width {record.student.width}"))
    for fold in model.folds:
        facts.append((f"fold {fold.name}", fold.problem or f"{_epochs(fold)}, {_versions(fold)}"))
        if fold.record is None:
            continue
        for teacher in fold.record.teachers:
            where = f"{teacher.folder}, fold {teacher.fold}, {teacher.checkpoint}, SHA-256 {teacher.sha256}"
            facts.append((f"teacher of fold {fold.name}", where))
        if fold.record.start is not None:
            facts.append((f"fold {fold.name} started as a part of", str(fold.record.start)))
        if fold.record.teacher_labels is not None:
            labels = fold.record.teacher_labels
            who = ", ".join(str(teacher) for teacher in labels.teachers)
            labelled_by = (
                f"{len(labels.cases)} training and {labels.validation_cases} validation cases labelled by {who}"
            )
            facts.append((f"labels of fold {fold.name}", labelled_by))
        if fold.record.stored is not None:
            stored = fold.record.stored
            facts.append((f"stored teacher of fold {fold.name}", f"{stored.folder}, by: {stored.command}"))
    return facts


def _training(model: TrainedModel) -> list[Any]:
    options = model.record.options if model.record is not None else {}
    return [options.get(key) for key in ("epochs", "iterations_per_epoch", "seed")]


def _network(model: TrainedModel) -> Any:
    return model.plans["configurations"].get(model.configuration, {}).get("architecture")


def _without_nothing(options: Any) -> Any:
    """The options that are set, as they would be written in an options file."""
    if not isinstance(options, dict):
        return options
    kept = {key: _without_nothing(value) for key, value in options.items() if value is not None}
    return {key: value for key, value in kept.items() if value != {}}


def _epochs(fold: TrainedFold) -> str:
    training = fold.record.training if fold.record is not None else None
    if training is None:
        return f"{fold.epoch} epochs"
    return (
        f"{fold.epoch} epochs of {training.iterations_per_epoch} iterations, {training.batch_size} patches each, on "
        f"{training.cases} cases"
    )


def _versions(fold: TrainedFold) -> str:
    versions = [f"nnunetv2_kd {fold.record.nnunetv2_kd}"] if fold.record is not None else []
    environment = fold.record.environment if fold.record is not None else None
    if environment is not None:
        versions += [f"nnU-Net {environment.nnunetv2}", f"torch {environment.torch}", f"Python {environment.python}"]
        versions.append(f"on {environment.device}")
    elif "torch_version" in (debug := fold.debug_information):
        versions.append(f"torch {debug['torch_version']}")
    return ", ".join(versions) or "versions not recorded"
