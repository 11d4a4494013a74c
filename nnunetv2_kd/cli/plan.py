"""``nnUNetv2_kd plan``: write a shrunken plans file and show what it saves."""

import argparse
import json
from copy import deepcopy
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from pydantic import ValidationError
from rich.table import Table
from tqdm import tqdm

from nnunetv2_kd.config import StudentOptions, parse_features, parse_latency, problems_of
from nnunetv2_kd.errors import KDError, listing
from nnunetv2_kd.formatting import format_count, format_gflops
from nnunetv2_kd.inference.device import device_name
from nnunetv2_kd.inference.latency import TimedShape, fastest_within
from nnunetv2_kd.inference.runtimes import check_runtime, runtimes_for
from nnunetv2_kd.networks.cost import network_cost
from nnunetv2_kd.networks.threads import limit_threads
from nnunetv2_kd.nnunet.datasets import dataset_id, device_flag, preprocessed_folder
from nnunetv2_kd.nnunet.files import check_writable, write_bytes, write_text
from nnunetv2_kd.nnunet.model_files import read_dataset_json
from nnunetv2_kd.nnunet.model_folder import trained_with
from nnunetv2_kd.nnunet.plans import Plans, check_configuration, planned_configurations, read_plans
from nnunetv2_kd.students.coarser import check_spacing, coarser_plans, coarser_spacing, voxels_of
from nnunetv2_kd.students.shapes import candidates, wider_and_shallower
from nnunetv2_kd.students.shrink import RECORD, made_from, shrink_plans
from nnunetv2_kd.students.size import plans_features, relative_width, width_for
from nnunetv2_kd.terminal import plain_console


def run(args: argparse.Namespace) -> int:
    folder = preprocessed_folder(args.d)
    plans, dataset_json = read_plans(folder, args.p), read_dataset_json(folder / "dataset.json")
    is_coarser = args.spacing is not None or args.coarser is not None
    name = args.o or f"{args.p}{'Coarser' if is_coarser else 'Student'}"
    target = folder / f"{name}.json"
    if name == args.p:
        raise KDError(f"The student's plans cannot have the teacher's name {args.p}. Choose another with -o.")
    if target.exists():
        check_replaceable(target, args.overwrite)
    if args.batch_size is not None and args.batch_size < 1:
        raise KDError(f"--batch-size must be at least 1, found {args.batch_size}.")
    for configuration in args.c or []:
        check_configuration(plans, configuration)
    configurations = args.c or (default_coarser(plans) if is_coarser else planned_configurations(plans))
    options = student_options(args)
    whole = plans
    if is_coarser:
        plans = coarser_plans(plans, spacings_of(args, plans, configurations), name, folder)
    if options.latency is not None:
        student = fast_student(args, plans, dataset_json, configurations, options, name)
    else:
        student = sized_student(plans, dataset_json, configurations, options, name)
    widths = student[RECORD]["width"]
    if is_coarser:
        student[RECORD]["spacing"] = {c: student["configurations"][c]["spacing"] for c in configurations}
    if args.batch_size is not None:
        for configuration in configurations:
            student["configurations"][configuration]["batch_size"] = args.batch_size
    write_text(target, json.dumps(student, indent=4) + "\n")
    console = plain_console()
    console.print(cost_table(whole, student, widths, dataset_json))
    console.print(f"Written: {target}", soft_wrap=True)
    lines = coarser_lines if is_coarser else training_lines
    in_3d = [c for c in configurations if c.startswith("3d")]  # for 3D images, 2d is rarely wanted
    shown = args.c or in_3d or configurations
    for line in lines(dataset_id(folder.name), shown, name, whole, student):
        console.print(line, soft_wrap=True, highlight=False)
    if not is_coarser and options.features is None and options.latency is None:
        for line in shape_lines(dataset_id(folder.name), shown, name, whole, student):
            console.print(line, soft_wrap=True, highlight=False)
    return 0


def training_lines(dataset: str, configurations: list[str], name: str, *_: Plans) -> list[str]:
    """The commands to type next."""
    commands = [f"  nnUNetv2_train {dataset} {c} 0 -p {name} -tr nnUNetTrainerRegionKD" for c in configurations]
    return ["Train the student, once the teacher is trained:", *(f"{command}{device_flag()}" for command in commands)]


def shape_lines(dataset: str, configurations: list[str], name: str, teacher: Plans, student: Plans) -> list[str]:
    """For students with few channels at full resolution, the command that plans a better shape."""
    lines = []
    for configuration in configurations:
        wider = wider_and_shallower(teacher, student, configuration)
        if wider is not None:
            now = "-".join(map(str, plans_features(student, configuration)))
            features = ",".join(map(str, wider))
            lines += [
                f"{configuration}: with {now} channels, a student is hardly faster than with twice as many, one "
                "convolution per stage, and was worse in our studies (docs/results.md, studies 9 and 27). Plan that "
                "one with:",
                f"  nnUNetv2_kd plan -d {dataset} -c {configuration} -p {teacher['plans_name']} --features {features} "
                f"--convs-per-stage 1 -o {name}Wide",
            ]
    return lines


def coarser_lines(dataset: str, configurations: list[str], name: str, teacher: Plans, student: Plans) -> list[str]:
    """How many voxels remain, and the commands to type next."""
    lines = []
    for configuration in configurations:
        before, after = (
            PlansManager(deepcopy(p)).get_configuration(configuration).configuration for p in (teacher, student)
        )
        spacings = " to ".join(" x ".join(f"{side:g}" for side in c["spacing"]) for c in (before, after))
        fewer = voxels_of(before) / voxels_of(after)
        lines.append(f"{configuration}: {spacings} mm, {fewer:.1f} times fewer voxels in a case of median size")
    configuration = configurations[0]
    train = f"nnUNetv2_train {dataset} {configuration} 0 -p {name} -tr nnUNetTrainerRegionKD{device_flag()}"
    return [
        *lines,
        "Preprocess for the student, store the trained teacher's predictions at its own spacing, and train:",
        f"  nnUNetv2_preprocess -d {dataset} -plans_name {name} -c {' '.join(configurations)}",
        f"  nnUNetv2_kd store -d {dataset} -c {configuration} -p {name} -f 0{device_flag()}",
        "  echo 'stored_teacher: fold_0' > stored.yaml",
        f"  nnUNet_kd_config=stored.yaml {train}",
    ]


def default_coarser(plans: Plans) -> list[str]:
    return [next(name for name in ("3d_fullres", "2d") if name in plans["configurations"])]


def spacings_of(args: argparse.Namespace, plans: Plans, configurations: list[str]) -> dict[str, list[float]]:
    """The spacing that ``--spacing`` or ``--coarser`` asks for, by configuration.

    Raises:
        KDError: if it is not coarser, or the configuration cannot have a coarser one.
    """
    if args.spacing is not None and args.coarser is not None:
        raise KDError("Give --spacing or --coarser, not both.")
    if made_from(plans) is not None:
        raise KDError(f"The plans {args.p} are already a student's. Make a coarser one from -p {made_from(plans)}.")
    found = {}
    for configuration in configurations:
        manager = PlansManager(deepcopy(plans)).get_configuration(configuration)
        if manager.previous_stage_name is not None or manager.next_stage_names:
            raise KDError(
                f"{configuration} is a stage of a cascade. Make a coarser student of 3d_fullres: -c 3d_fullres"
            )
        before = manager.spacing
        found[configuration] = (
            coarser_spacing(before, args.coarser) if args.spacing is None else check_spacing(before, args.spacing)
        )
    return found


def check_replaceable(plans_file: Path, overwrite: bool) -> None:
    """Check that existing plans may be replaced: not if a trained model uses them.

    Raises:
        KDError: if they may not; gives a name that is free.
    """
    models = trained_with(plans_file.parent.name, plans_file.stem)
    free = next(n for i in range(2, 1000) if not plans_file.with_stem(n := f"{plans_file.stem}{i}").exists())
    if models:
        raise KDError(
            f"{plans_file} was kept, because trained models need it to be resumed or to add a fold: "
            f"{', '.join(models)}. Choose another name: -o {free}"
        )
    if not overwrite:
        raise KDError(f"{plans_file} already exists and was kept. Add --overwrite to replace it, or: -o {free}")


def sized_student(
    plans: Plans, dataset_json: dict[str, Any], configurations: list[str], options: StudentOptions, name: str
) -> Plans:
    """The plans of a student of a given width, within a budget, or with given channels."""
    if options.features is not None:
        by_hand = {c: parse_features(options.features) for c in configurations}
        widths = {c: relative_width(plans, c, by_hand[c]) for c in configurations}
        return shrink_plans(plans, widths, options.convs_per_stage, name, by_hand)
    widths = {c: width_for(plans, c, dataset_json, options) for c in configurations}
    return shrink_plans(plans, widths, options.convs_per_stage, name)


def fast_student(
    args: argparse.Namespace,
    plans: Plans,
    dataset_json: dict[str, Any],
    configurations: list[str],
    options: StudentOptions,
    name: str,
) -> Plans:
    """The plans of a student that is as fast as asked for, measured on this machine."""
    if len(configurations) > 1:
        raise KDError(f"--latency is measured for one configuration. Name it: -c {' or -c '.join(configurations)}")
    if options.convs_per_stage is not None:
        raise KDError("--latency chooses the convolutions per stage itself. Leave out --convs-per-stage.")
    runtime = args.runtime or next(
        r for r in ("openvino", "onnx", "torch") if r in [*runtimes_for(args.precision), "torch"]
    )
    check_runtime(runtime, args.precision, "cpu")
    if args.plot is not None:
        check_writable(args.plot.absolute().parent, "--plot")
    configuration, budget = configurations[0], parse_latency(options.latency)
    limit_threads()
    timed, picked = fastest_within(
        candidates(plans, configuration, dataset_json),
        budget,
        plans,
        configuration,
        dataset_json,
        runtime,
        args.precision,
        not args.disable_tta,
        lambda shapes: tqdm(shapes, unit="shape", leave=False),
    )
    how = f"{runtime} {args.precision} on {device_name(torch.device('cpu'))}"
    plain_console().print(latency_table(timed, picked, budget, f"{configuration} in {how}"))
    if args.plot is not None:
        draw(timed, picked, budget, how, args.plot)
        print(f"Drawn: {args.plot}")
    record = {
        "asked": options.latency,
        "measured_ms": round(picked.ms_case, 1),
        "runtime": runtime,
        "precision": args.precision,
        "mirroring": not args.disable_tta,
        "processor": device_name(torch.device("cpu")),
    }
    return picked.shape.plans(plans, configuration, name, record)


def latency_table(timed: list[TimedShape], picked: TimedShape, budget: float, title: str) -> Table:
    """Every shape with its cost and time. The chosen one is marked; estimated times start with ~."""
    table = Table(title=f"{title}; budget {budget:g} ms per case")
    columns = ("", "channels, convolutions", "parameters", "GFLOPs", "activations", "ms per patch", "ms per case")
    for column in columns:
        left = column in columns[:2]
        table.add_column(column, justify="left" if left else "right", no_wrap=left)
    for number, entry in enumerate(timed):
        cost = entry.shape.cost
        table.add_row(
            "→" if entry is picked else "teacher" if number == 0 else "",
            str(entry.shape),
            format_count(cost.params),
            format_gflops(cost.flops),
            f"{cost.activation_bytes / 2**20:.0f} MiB",
            f"{entry.ms_patch:.1f}",
            f"{'' if entry.is_measured else '~'}{entry.ms_case:.0f}",
            style="bold" if entry is picked else "",
        )
    return table


def draw(timed: list[TimedShape], picked: TimedShape, budget: float, how: str, file: Path) -> None:
    """Plot milliseconds per case against GFLOPs per patch, one point per shape."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 6), layout="constrained")
    for number, entry in enumerate(timed):
        colour = "tab:red" if entry is picked else "black" if number == 0 else "tab:blue"
        one = entry.shape.convs_per_stage == 1
        x, y = entry.shape.cost.flops / 1e9, entry.ms_case
        axes.plot(x, y, "^" if one else "o", color=colour, markersize=9 if entry is picked else 6)
        axes.annotate(
            "-".join(map(str, entry.shape.features)),
            (x, y),
            xytext=(5, 4),
            textcoords="offset points",
            fontsize=7,
            color=colour,
        )
    axes.axhline(budget, color="gray", linestyle="--", linewidth=1)
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="GFLOPs per patch",
        ylabel="ms per case",
        title=f"{how}\nblack: teacher, red: chosen, triangles: one convolution per stage, dashed: budget",
    )
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter("{x:g}")
    axes.tick_params(which="minor", labelsize=6)
    axes.grid(alpha=0.3, which="both")
    with BytesIO() as picture:
        figure.savefig(picture, format=file.suffix.lstrip(".").lower() or "png", dpi=130)
        write_bytes(file, picture.getvalue())
    plt.close(figure)


def student_options(args: argparse.Namespace) -> StudentOptions:
    """The flags as options, so that both are checked in the same way."""
    given = {key: getattr(args, key) for key in ("width", "params", "flops", "features", "latency", "convs_per_stage")}
    try:
        return StudentOptions(**{key: value for key, value in given.items() if value is not None})
    except ValidationError as error:
        raise KDError(listing("The student cannot be made:", problems_of(error))) from error


def cost_table(
    teacher: dict[str, Any], student: dict[str, Any], widths: dict[str, float], dataset_json: dict[str, Any]
) -> Table:
    """Teacher and student side by side, per configuration."""
    table = Table(title=f"{teacher['plans_name']} → {student['plans_name']}")
    for column in ("configuration", "", "teacher", "student", "ratio"):
        left = column in ("configuration", "")
        table.add_column(column, justify="left" if left else "right", no_wrap=True)
    for configuration, width in widths.items():
        t, s = (network_cost(plans, configuration, dataset_json) for plans in (teacher, student))
        rows = [
            (
                configuration,
                "parameters",
                format_count(t.params),
                format_count(s.params),
                s.params / t.params,
            ),
            (f"width {width:g}", "GFLOPs per patch", format_gflops(t.flops), format_gflops(s.flops), s.flops / t.flops),
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
