"""``nnUNetv2_kd unlabelled``: make a dataset of labelled cases and of scans labelled by teachers; train a
student on it."""

import argparse
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import yaml
from nnunetv2.paths import nnUNet_results
from rich.table import Table

from nnunetv2_kd.cli.label_maps import label_maps
from nnunetv2_kd.config import TeacherOptions
from nnunetv2_kd.errors import KDError
from nnunetv2_kd.inference.device import check_device
from nnunetv2_kd.networks.threads import limit_threads
from nnunetv2_kd.nnunet.datasets import dataset_id, raw_folder
from nnunetv2_kd.nnunet.files import write_text
from nnunetv2_kd.nnunet.model_folder import FINAL
from nnunetv2_kd.teachers.find import StudentIdentity, teacher_folder
from nnunetv2_kd.teachers.label_map import label_words
from nnunetv2_kd.terminal import plain_console
from nnunetv2_kd.trainers.options import VARIABLE, options_file, read_options_file
from nnunetv2_kd.unlabelled.labellers import Models
from nnunetv2_kd.unlabelled.make import MadeDataset, Request, make
from nnunetv2_kd.unlabelled.output import OPTIONS, PROGRESS
from nnunetv2_kd.unlabelled.pseudo_labels import Rules

STORE = "labellers"
SHOWN = 10  # number of left-out scans that are listed by name


def run(args: argparse.Namespace) -> int:
    for flag in ("confidence", "votes", "scan_dice"):
        if not 0 <= getattr(args, flag) <= 1:
            raise KDError(f"--{flag} must be between 0 and 1, found {getattr(args, flag):g}.")
    device = torch.device(args.device)
    check_device(device)
    limit_threads(device)
    dataset = raw_folder(args.d) if args.d is not None else None
    folders = tuple(model_folders(args, dataset))
    request = Request(
        dataset=dataset,
        scans=args.i,
        output=args.o,
        models=Models(
            folders=folders,
            named=tuple(named_labels(args.labels, len(folders))),
            folds=tuple(args.f) if args.f else None,
            checkpoint=args.chk,
            trust=args.trust,
            mirroring=not args.disable_tta,
            device=device,
        ),
        rules=Rules(args.confidence, args.votes, args.scan_dice),
        copy=args.copy,
        command=shlex.join(["nnUNetv2_kd", *sys.argv[1:]]),
    )
    console = plain_console()

    def say(line: str) -> None:
        console.print(line, soft_wrap=True, markup=False, highlight=False)

    made = make(request, say)
    options = write_options(made, args.chk)
    for line in summary(made):
        say(line)
    console.print(scan_table(made))
    commands = list(next_commands(made, args, "stored_teacher" in options))
    say("Training the student:" if args.train else "Train the student, or add --train above:")
    for env, command in commands:
        say("  " + " ".join([*(f"{name}={shlex.quote(value)}" for name, value in env.items()), shlex.join(command)]))
        if args.train:
            train(env, command)
    return 0


def model_folders(args: argparse.Namespace, dataset: Path | None) -> list[Path]:
    """The given model folders, or the one that -d, -tr, -p and -c name."""
    if args.teacher_folder:
        return [folder.expanduser().absolute() for folder in args.teacher_folder]
    if dataset is None:
        raise KDError("Without -d there is no default teacher: name a model folder with --teacher_folder.")
    if not nnUNet_results.is_set():
        raise KDError(
            "The environment variable nnUNet_results is not set: no trained model can be found. Set it, or name a "
            "model folder with --teacher_folder."
        )
    identity = StudentIdentity(dataset.name, args.p, args.c, "all")
    return [teacher_folder(TeacherOptions(trainer=args.tr), identity)]


def named_labels(entries: list[str] | None, teachers: int) -> list[dict[str, tuple[str, ...]]]:
    """Each teacher's labels according to --labels.

    Raises:
        KDError: if a label has no teacher, because nobody would then draw it in the scans.
    """
    maps = label_maps(entries, teachers)
    empty = sorted({name for named in maps for name, labels in named.items() if not labels})
    if empty:
        raise KDError(
            f"--labels {empty[0]}= gives {empty[0]} no teacher, so it would be background in every scan. Name a "
            f"teacher's label for it, --labels {empty[0]}=THEIR_LABEL, or leave it out of the dataset's labels."
        )
    return maps


def write_options(made: MadeDataset, checkpoint: str) -> dict[str, Any]:
    """Write the options file for the student's training: the user's own options, and the teacher. A single teacher runs
    during training; several are stored first, because running them all at every step would be slow.

    Returns:
        The options.
    """
    (first, *others), file = made.teaching, options_file()
    if others or len(first.records) > 1:
        teacher: dict[str, Any] = {"stored_teacher": STORE}
    else:
        fold = first.records[0].fold
        named: dict[str, Any] = {"folder": str(first.folder), "fold": fold if fold == "all" else int(fold)}
        labels = first.all_named(made.structures)
        named |= {"labels": labels} if labels else {}
        teacher = {"teacher": named | ({} if checkpoint == FINAL else {"checkpoint": checkpoint})}
    own = read_options_file(file) if file is not None else {}
    kept = {key: value for key, value in own.items() if key not in ("teacher", "teachers", "stored_teacher", "combine")}
    write_text(made.folder / OPTIONS, yaml.safe_dump(teacher | kept, sort_keys=False))
    return teacher


def next_commands(made: MadeDataset, args: argparse.Namespace, stored: bool) -> list[tuple[dict[str, str], list[str]]]:
    """The commands, with environment variables, from the dataset to a trained student."""
    number, device = dataset_id(made.folder.name), [] if args.device == "cuda" else ["-device", args.device]
    plans = [] if made.plans == "nnUNetPlans" else ["-p", made.plans]
    lines: list[tuple[dict[str, str], list[str]]] = [
        ({}, ["nnUNetv2_extract_fingerprint", "-d", number, "--verify_dataset_integrity"]),
        ({}, ["nnUNetv2_preprocess", "-d", number, "-plans_name", made.plans, "-c", made.configuration]),
    ]
    if stored:
        folders = [word for labeller in made.teaching for word in ("--teacher_folder", str(labeller.folder))]
        folds = [record.fold for record in made.teaching[0].records]
        store = ["nnUNetv2_kd", "store", "-d", number, "-c", made.configuration, *plans, *folders, "-f", *folds]
        store += [] if args.chk == FINAL else ["-chk", args.chk]
        store += ["--trust"] * args.trust
        store += label_words([labeller.named for labeller in made.teaching])
        lines.append(({}, [*store, "-o", STORE, *device]))
    train_student = ["nnUNetv2_train", number, made.configuration, "0", *plans, "-tr", "nnUNetTrainerRegionKD", *device]
    lines.append(({VARIABLE: str(made.folder / OPTIONS)}, train_student))
    return lines


def train(env: dict[str, str], command: list[str]) -> None:
    """Run one of these commands.

    Raises:
        KDError: if it fails; the commands after it have already been printed.
    """
    program = Path(sys.executable).parent / command[0]
    words = [str(program) if program.is_file() else command[0], *command[1:]]
    done = subprocess.run(words, env=os.environ | env)
    if done.returncode != 0:
        raise KDError(f"{command[0]} failed; see its output. The dataset is complete: go on with the commands above.")


def summary(made: MadeDataset) -> list[str]:
    """What was made, and warnings about it."""
    kept = [facts for facts in made.scans.values() if not facts["left_out"]]
    left_out = {case: facts["left_out"] for case, facts in made.scans.items() if facts["left_out"]}
    lines = [
        f"Made: {made.folder}",
        f"  {made.labelled} labelled cases and {len(kept)} scans labelled by "
        + ", ".join(f"{labeller.folder.name} (fold {_folds(labeller)})" for labeller in made.labellers),
    ]
    lines += [
        f"  {labeller.folder} labels only: its folds or its voxels are not those of {made.teaching[0].folder.name}"
        for labeller in made.labellers
        if labeller not in made.teaching
    ]
    if left_out:
        lines.append(f"  left out: {len(left_out)} scans, the first: ")
        lines += [f"    {case}: {why}" for case, why in sorted(left_out.items())[:SHOWN]]
    lines.append(f"  every scan: {made.folder / PROGRESS}")
    for structure in made.structures.names:
        if not any(facts["voxels"][structure] for facts in kept):
            lines.append(f"  WARNING: the teacher finds no {structure} in any scan. Do teacher and scans fit together?")
    if not made.labelled:
        lines.append("  No case was labelled by a person: validation is agreement with the teacher, not accuracy.")
    return lines


def _folds(labeller: Any) -> str:
    return ", ".join(record.fold for record in labeller.records)


def scan_table(made: MadeDataset) -> Table:
    """For the scans that were kept: the size of each structure, how much is ignored, and how well
    the teachers agree."""
    import numpy as np

    kept = [facts for facts in made.scans.values() if not facts["left_out"]]
    table = Table(title=f"{len(kept)} scans")
    for column in ("", "least", "median", "most"):
        table.add_column(column, justify="right" if column else "left")

    def row(name: str, values: list[float], digits: int) -> None:
        table.add_row(name, *(f"{value:.{digits}f}" for value in (min(values), np.median(values), max(values))))

    for structure in made.structures.names:
        row(f"{structure}, voxels", [facts["voxels"][structure] for facts in kept], 0)
    if made.uses_ignore:
        row("ignored, voxels", [facts["ignored"] for facts in kept], 0)
    agreements = [facts["agreement"] for facts in kept if facts["agreement"] is not None]
    if agreements:
        row("agreement between teachers, Dice", agreements, 3)
    return table
