"""``nnUNetv2_kd store``: run a teacher once over the preprocessed cases and store its predictions."""

import argparse
import json
import math
import shlex
import sys
from functools import cache
from pathlib import Path
from typing import Any

import torch
from nnunetv2.paths import nnUNet_results
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_kd.cli.label_maps import label_maps
from nnunetv2_kd.config import TeacherOptions
from nnunetv2_kd.errors import KDError, listing
from nnunetv2_kd.inference.device import check_device
from nnunetv2_kd.networks.cpu_mode import cpu_has_bfloat16
from nnunetv2_kd.networks.threads import limit_threads
from nnunetv2_kd.nnunet.datasets import preprocessed_folder, raw_images
from nnunetv2_kd.nnunet.fold_data import preprocess_line
from nnunetv2_kd.nnunet.model_files import read_dataset_json
from nnunetv2_kd.nnunet.plans import check_configuration, read_plans
from nnunetv2_kd.students.shrink import made_from
from nnunetv2_kd.teachers.ensemble import check_different
from nnunetv2_kd.teachers.find import StudentIdentity
from nnunetv2_kd.teachers.label_map import map_problems, structures_of
from nnunetv2_kd.teachers.stored.predictor import CasePredictor
from nnunetv2_kd.teachers.stored.store import Store, store_folder
from nnunetv2_kd.teachers.stored.write import Task, make
from nnunetv2_kd.terminal import plain_console

MEND = (
    "Name the teacher's label, --labels {name}=THEIR_LABEL; or let the student learn it from its own labels alone, "
    "--labels {name}="
)


def run(args: argparse.Namespace) -> int:
    check_device(torch.device(args.device))
    limit_threads(torch.device(args.device))
    if not (args.teacher_folder or nnUNet_results.is_set()):
        raise KDError(
            "The environment variable nnUNet_results is not set: no trained model can be found. Set it, or "
            "name a model folder with --teacher_folder."
        )
    base = preprocessed_folder(args.d)
    plans, dataset_json = read_plans(base, args.p), read_dataset_json(base / "dataset.json")
    check_configuration(plans, args.c)
    manager = PlansManager(plans)
    configuration = manager.get_configuration(args.c)
    if configuration.previous_stage_name is not None:
        raise KDError(
            f"{args.c} is a cascade, which cannot be stored: augmentation changes the previous stage's segmentation in "
            "the teacher's input. Let the teacher run during training."
        )
    data = base / configuration.data_identifier
    if not any(data.glob("*.pkl")):
        line = preprocess_line(base.name, args.p, args.c)
        raise KDError(f"{data} holds no preprocessed cases. Preprocess them: {line}")
    name = args.o or f"fold_{'_'.join(args.f)}"
    console = plain_console(stderr=True)
    cases = sorted(file.name.removesuffix(".pkl") for file in data.glob("*.pkl"))
    models = load_models(args, base, plans, dataset_json, cases)
    for line in teacher_notes(models):
        console.print(line, soft_wrap=True, markup=False, highlight=False)
    store = make(
        Task(store_folder(base, data.name, name), data, manager, args.c, dataset_json, command()),
        models,
        args.overwrite,
        lambda line: console.print(line, soft_wrap=True, markup=False, highlight=False),
    )
    for line in summary(store, data, name):
        print(line)
    return 0


def about_interruption(_: argparse.Namespace) -> str:
    return f"The cases that were stored are kept. Continue with:\n  {command()}"


def command() -> str:
    """The command that continues the store."""
    return shlex.join(["nnUNetv2_kd", *(part for part in sys.argv[1:] if part != "--overwrite")])


def load_models(
    args: argparse.Namespace, base: Path, plans: dict[str, Any], dataset_json: dict[str, Any], cases: list[str]
) -> list[CasePredictor]:
    """Every fold of every model folder.

    Args:
        base: the dataset's folder under nnUNet_preprocessed.
        plans, dataset_json: the student's.
        cases: the cases whose raw images are read for teachers that preprocess them on their own.

    Raises:
        KDError: if a teacher is missing, or cannot teach this student.
    """
    if args.bfloat16 and (args.device != "cpu" or not cpu_has_bfloat16()):
        raise KDError("--bfloat16 needs -device cpu and a processor with bfloat16 instructions. Leave it out.")
    student = StudentIdentity(base.name, made_from(plans) or args.p, args.c, "all")
    named: list[dict[str, Any]] = [{"folder": folder} for folder in args.teacher_folder or ()] or [{"trainer": args.tr}]
    weights, labels = teacher_weights(args.weights, len(named)), label_maps(args.labels, len(named))
    channels = channel_names(args.channels)
    images = cache(lambda: raw_images(base.name, dataset_json, cases))
    wrong = [fold for fold in args.f if not (fold == "all" or fold.isdigit())]
    if wrong:
        raise KDError(f"-f must be folds, such as 0 1 2 or all, found {' '.join(wrong)}.")
    models, problems = [], []
    for where, weight, names in zip(named, weights, labels, strict=True):
        for fold in args.f:
            options = TeacherOptions(
                **where,
                fold=fold if fold == "all" else int(fold),
                checkpoint=args.chk,
                trust=args.trust,
                labels=names,
            )
            setting = (torch.device(args.device), not args.disable_tta, args.bfloat16)
            try:
                models.append(CasePredictor(options, student, plans, dataset_json, *setting, images, channels, weight))
            except KDError as error:
                problems.append(str(error))
    if problems:
        flags = "-tr, -p, -f, -chk, --teacher_folder and --trust"
        reasons = dict.fromkeys(problems)  # each fold repeats what is wrong with its folder
        raise KDError("\n".join([*reasons, f"(Instead of the options file, use {flags} here.)"]))
    check_different([model.teacher for model in models])
    check_labels(models, dataset_json)
    for note in sorted({note for model in models for note in model.teacher.notes}):
        print(note)
    return models


def check_labels(models: list[CasePredictor], dataset_json: dict[str, Any]) -> None:
    """Check that the teachers' labels fit the student's.

    Raises:
        KDError: lists every problem of every teacher.
    """
    teachers = {str(m.path.folder): (structures_of(m.dataset_json), m.labels) for m in models}
    problems = map_problems(structures_of(dataset_json), [(name, *rest) for name, rest in teachers.items()], MEND)
    if problems:
        raise KDError(listing("The labels of teachers and student do not fit together:", problems))


def teacher_weights(given: list[float] | None, count: int) -> list[float]:
    """One weight per teacher, above 0."""
    if given is None:
        return [1.0] * count
    if len(given) != count or not all(0 < weight < math.inf for weight in given):
        raise KDError(f"--weights must be {count} numbers above 0, one for each --teacher_folder, found {given}.")
    return given


def channel_names(entries: list[str] | None) -> dict[str, str]:
    """Read pairs such as ``T1=MRI``: the student's name for each of the teacher's channels.

    Raises:
        KDError: if an entry is not such a pair.
    """
    pairs = [entry.split("=") for entry in entries or ()]
    if not all(len(pair) == 2 and all(pair) for pair in pairs):
        raise KDError(f"--channels must be pairs THEIR_NAME=STUDENTS_NAME, found {' '.join(entries or ())}.")
    return {pair[0]: pair[1] for pair in pairs}


def teacher_notes(models: list[CasePredictor]) -> list[str]:
    """How each teacher sees the images, if it does not use the student's preprocessed data, and what it teaches if that
    is not every label."""
    lines = []
    for model in models:
        name = f"{model.path.folder.name}, fold {model.path.fold}"
        if model.space is not None:
            lines.append(f"{name} sees the raw images with its own plans ({'; '.join(model.differs)})")
            lines += [f"WARNING: {problem}. The other cases are stored." for problem in model.space.problems]
        if not model.map.is_one_to_one:
            lines.append(f"{name} teaches {model.map.described}")
    return lines


def summary(store: Store, data: Path, name: str) -> list[str]:
    """How many cases are stored, how good and large the store is, and how to train from it."""
    records = [store.record(case) or {} for case in store.header["cases"]]
    size = sum(known["size"] for record in records for known in record["files"].values())
    whole = sum(file.stat().st_size for file in data.iterdir())
    dice = [value for record in records for value in record["dice"] if value is not None]
    return [
        f"Stored: {store.folder}",
        f"  {len(records)} cases, {size / 2**20:.1f} MiB ({100 * size / whole:.0f} % of the preprocessed data); "
        f"largest quantization error of a probability {max(record['error'] for record in records):.4f}",
        f"  mean Dice against the labels {sum(dice) / max(1, len(dice)):.4f} (training cases included)",
        "Train from it with this line in the options file that nnUNet_kd_config names:",
        f"  stored_teacher: {json.dumps(name)}",
    ]
