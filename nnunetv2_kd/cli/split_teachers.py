"""``nnUNetv2_kd split-teachers``: give each of several teachers its own share of the training cases."""

import argparse
import csv
import json
import shlex
from pathlib import Path

import yaml
from rich.table import Table

from nnunetv2_kd.errors import KDError
from nnunetv2_kd.nnunet.datasets import dataset_id, device_flag, preprocessed_folder
from nnunetv2_kd.nnunet.files import write_text
from nnunetv2_kd.nnunet.plans import check_configuration, read_plans
from nnunetv2_kd.nnunet.splits import SPLITS, make_splits, read_splits
from nnunetv2_kd.teachers.case_shares import shares, shares_by_group, with_teachers
from nnunetv2_kd.terminal import plain_console


def run(args: argparse.Namespace) -> int:
    if args.n is not None and args.n < 2:
        raise KDError(f"-n must be at least 2, found {args.n}. A single teacher needs no share: train it on the fold.")
    if args.cases is not None and args.cases < 1:
        raise KDError(f"--cases must be at least 1, found {args.cases}.")
    folder = preprocessed_folder(args.d)
    plans = read_plans(folder, args.p)
    args.c = args.c or next((c for c in ("3d_fullres", *plans["configurations"]) if c in plans["configurations"]), "2d")
    check_configuration(plans, args.c)  # for the printed commands
    splits = read_splits(folder) or make_splits(folder)
    if not 0 <= args.f < len(splits):
        raise KDError(f"There is no fold {args.f}: {folder / SPLITS} has folds 0 to {len(splits) - 1}.")
    cases = splits[args.f]["train"]
    if args.groups is not None:
        dealt = shares_by_group(cases, read_groups(args.groups), args.n, args.cases, args.seed)
    else:
        dealt = shares(cases, args.n or 3, args.cases, args.seed)
    extended, folds = with_teachers(splits, args.f, dealt)
    teachers = {"teachers": [{"plans": args.p, "fold": fold} for fold in folds]}
    write_text(args.o, yaml.safe_dump(teachers, sort_keys=False))
    write_text(folder / SPLITS, json.dumps(extended, indent=4) + "\n")
    show(args, folder, dealt, folds, len(splits[args.f]["val"]))
    return 0


def read_groups(file: Path) -> dict[str, str]:
    """The group of every case.

    Raises:
        KDError: if the file cannot be read, lacks a column, or gives a case two groups.
    """
    try:
        with file.open(newline="") as stream:
            rows = list(csv.DictReader(stream))
    except (OSError, UnicodeDecodeError) as error:
        raise KDError(f"The groups file {file} cannot be read: {error}") from error
    if not rows or not {"case", "group"} <= set(rows[0]):
        found = ", ".join(rows[0]) if rows else "nothing"
        raise KDError(f"The groups file {file} needs the columns case and group in its first line, found {found}.")
    groups: dict[str, str] = {}
    for row in rows:
        if groups.setdefault(row["case"], row["group"]) != row["group"]:
            raise KDError(f"The groups file {file} gives {row['case']} to {groups[row['case']]} and to {row['group']}.")
    return groups


def show(args: argparse.Namespace, folder: Path, dealt: list[list[str]], folds: list[int], validation: int) -> None:
    console = plain_console()
    table = Table(title=f"Teachers of {folder.name}, fold {args.f}: {validation} validation cases, in no share")
    for column in ("teacher", "fold", "training cases", "the first"):
        table.add_column(column)
    for number, (share, fold) in enumerate(zip(dealt, folds, strict=True), start=1):
        table.add_row(str(number), str(fold), str(len(share)), ", ".join(share[:3]))
    console.print(table)
    dataset = dataset_id(folder.name)
    plans = "" if args.p == "nnUNetPlans" else f" -p {args.p}"
    lines = ["Train the teachers, then the student:"]
    device = device_flag()
    lines += [f"  nnUNetv2_train {dataset} {args.c} {fold}{plans}{device}" for fold in folds]
    lines.append(
        f"  nnUNet_kd_config={shlex.quote(str(args.o.absolute()))} nnUNetv2_train {dataset} {args.c} {args.f}{plans} "
        f"-tr nnUNetTrainerMultiTeacherKD{device}"
    )
    for line in lines:
        console.print(line, soft_wrap=True, highlight=False, markup=False)
