"""``nnUNetv2_kd plan``: write a shrunken plans file and show what it saves."""

import argparse
import json
from typing import Any

from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from nnunetv2_kd.config import StudentOptions, problems_of
from nnunetv2_kd.errors import KDError, listing
from nnunetv2_kd.formatting import format_count
from nnunetv2_kd.networks.cost import network_cost
from nnunetv2_kd.nnunet.datasets import dataset_id, preprocessed_folder
from nnunetv2_kd.nnunet.files import read_json
from nnunetv2_kd.nnunet.plans import check_configuration, planned_configurations, read_plans
from nnunetv2_kd.students.shrink import shrink_plans
from nnunetv2_kd.students.size import width_for


def run(args: argparse.Namespace) -> int:
    folder = preprocessed_folder(args.d)
    plans, dataset_json = read_plans(folder, args.p), read_json(folder / "dataset.json")
    name = args.o or f"{args.p}Student"
    target = folder / f"{name}.json"
    if name == args.p:
        raise KDError(f"The student's plans cannot have the teacher's name {args.p}. Choose another with -o.")
    if target.exists() and not args.overwrite:
        raise KDError(f"{target} is already there and was kept. Add --overwrite to replace it, or choose another -o.")
    if args.batch_size is not None and args.batch_size < 1:
        raise KDError(f"--batch-size must be at least 1, found {args.batch_size}.")
    for configuration in args.c or []:
        check_configuration(plans, configuration)
    configurations = args.c or planned_configurations(plans)
    options = student_options(args)
    widths = {c: width_for(plans, c, dataset_json, options) for c in configurations}
    student = shrink_plans(plans, widths, options.convs_per_stage, name)
    if args.batch_size is not None:
        for configuration in configurations:
            student["configurations"][configuration]["batch_size"] = args.batch_size
    try:
        target.write_text(json.dumps(student, indent=4) + "\n")
    except OSError as error:
        raise KDError(f"{target} cannot be written: {error.strerror}.") from error
    console = Console()
    console.print(cost_table(plans, student, widths, dataset_json))
    console.print(f"Written: {target}", soft_wrap=True)
    console.print("Train the student, once the teacher is trained:")
    command = f"nnUNetv2_train {dataset_id(folder.name)} {configurations[0]} 0 -p {name} -tr nnUNetTrainerRegionKD"
    console.print(f"  {command}", soft_wrap=True, highlight=False)
    return 0


def student_options(args: argparse.Namespace) -> StudentOptions:
    """The flags as options, so that both ways are checked alike."""
    given = {"width": args.width, "params": args.params, "flops": args.flops, "convs_per_stage": args.convs_per_stage}
    try:
        return StudentOptions(**{key: value for key, value in given.items() if value is not None})
    except ValidationError as error:
        raise KDError(listing("The student cannot be made:", problems_of(error))) from error


def cost_table(
    teacher: dict[str, Any], student: dict[str, Any], widths: dict[str, float], dataset_json: dict[str, Any]
) -> Table:
    """Teacher and student side by side, per configuration."""
    table = Table(title=f"{teacher['plans_name']} → {student['plans_name']}")
    for column in ("configuration", "", "teacher", "student", "student / teacher"):
        table.add_column(column, justify="left" if column in ("configuration", "") else "right")
    for configuration, width in widths.items():
        t, s = (network_cost(plans, configuration, dataset_json) for plans in (teacher, student))
        rows = [
            (
                f"{configuration} (width {width:g})",
                "parameters",
                format_count(t.params),
                format_count(s.params),
                s.params / t.params,
            ),
            ("", "GFLOPs per patch", f"{t.flops / 1e9:.2f}", f"{s.flops / 1e9:.2f}", s.flops / t.flops),
            (
                "",
                "activation memory per patch",
                f"{t.activation_bytes / 2**20:.0f} MiB",
                f"{s.activation_bytes / 2**20:.0f} MiB",
                s.activation_bytes / t.activation_bytes,
            ),
        ]
        for *cells, ratio in rows:
            table.add_row(*cells, f"{ratio:.3f}")
        table.add_section()
    return table
