"""``nnUNetv2_kd export``: write a model for a machine without GPU, or without this package."""

import argparse
import math
import shlex
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

from nnunetv2.paths import nnUNet_results
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from nnunetv2_kd.errors import KDError
from nnunetv2_kd.inference.agreement import Agreement
from nnunetv2_kd.inference.export import ExportRequest, export
from nnunetv2_kd.nnunet.datasets import trained_dataset
from nnunetv2_kd.nnunet.model_folder import ModelName, parse_model_name
from nnunetv2_kd.terminal import plain_console


def run(args: argparse.Namespace) -> int:
    if (args.m is None) == (args.d is None):
        raise KDError("Name the model either with -d DATASET (and -c, -p, -tr) or with -m FOLDER.")
    if args.m is not None:
        models = [model.expanduser().absolute() for model in args.m]
        configurations = [args.c[0]] * len(models)  # if a zip holds several
    else:
        home, configurations = Path(nnUNet_results) / trained_dataset(args.d), args.c
        models = [home / str(ModelName(args.tr, args.p, configuration)) for configuration in configurations]
    request = ExportRequest(
        model=models[0],
        folds=args.f,
        output=args.o.absolute(),
        format=args.format,
        precision=args.precision,
        checkpoint=args.chk,
        images=args.i,
        truths=args.gt,
        previous=args.prev_stage_predictions,
        cases=args.cases,
        tolerance=args.tolerance,
        intended_use=args.intended_use,
        licence=args.licence,
    )
    if args.format == "portable":
        return _portable(args, request, models, configurations)
    given = [flag for flag in ("openvino", "postprocessing", "codes", "wheels") if getattr(args, flag)]
    if given:
        raise KDError(f"--{given[0]} is for --format portable, found --format {args.format}.")
    if len(models) > 1:
        raise KDError(f"--format {args.format} exports one model, found {len(models)}. Several: --format portable")
    console = plain_console()
    found = export(request, partial(_say, console), _progress)
    _show(console, found)
    console.print(f"Written: {request.output}", soft_wrap=True, highlight=False)
    for line in next_steps(args.format, request):
        console.print(line, soft_wrap=True, highlight=False, markup=False)
    return 0


def _portable(
    args: argparse.Namespace, base: ExportRequest, models: Sequence[Path], configurations: Sequence[str]
) -> int:
    from nnunetv2_kd.portable.write import PortableRequest, export_portable

    console = plain_console()
    if base.precision != "f32":
        raise KDError(f"--format portable has no --precision {base.precision}, only f32.")
    request = PortableRequest(
        base=base,
        models=models,
        configurations=configurations,
        openvino=args.openvino,
        postprocessing=args.postprocessing,
        codes=args.codes,
        wheels=args.wheels,
    )
    found = export_portable(request, partial(_say, console), _progress)
    if found.agreement is not None:
        _show(console, found.agreement)
    console.print(found.self_test.summary(), soft_wrap=True, highlight=False, markup=False)
    console.print(f"Written: {base.output}", soft_wrap=True, highlight=False)
    home = shlex.quote(str(base.output))
    wheels = f"--no-index --find-links {home}/wheels " if request.wheels else ""
    for line in (
        "On a machine with Python alone:",
        f"  python -m pip install {wheels}-r {home}/requirements.txt",
        f"  python {home}/predict.py --self-test",
        f"  python {home}/predict.py -i IN -o OUT",
    ):
        console.print(line, soft_wrap=True, highlight=False, markup=False)
    return 0


def _say(console: Console, line: str) -> None:
    console.print(line, style="dim", markup=False, highlight=False, soft_wrap=True)


def _progress(cases: Iterable) -> Iterable:
    return tqdm(cases, unit="case", leave=False)


def _show(console: Console, found: Agreement) -> None:
    console.print(agreement_table(found))
    console.print(
        f"{found.differing} of {found.voxels} voxels differ from PyTorch ({found.foreground} are foreground); "
        f"{found.ms[0]:.0f} ms per case in PyTorch, {found.ms[1]:.0f} ms in the export",
        highlight=False,
        soft_wrap=True,
    )


def next_steps(format_: str, request: ExportRequest) -> list[str]:
    """The commands to use the export."""
    if format_ != "nnunet":
        return [
            "Predict with it:",
            f"  nnUNetv2_kd predict -m {shlex.quote(str(request.output))} -i IN -o OUT -device cpu",
        ]
    name = parse_model_name(request.model.name)
    if name is None:  # reported before the export
        return []
    trainer, plans, configuration = name
    dataset = request.model.parent.name
    return [
        "On a machine with nnU-Net, with or without nnunetv2_kd:",
        f"  nnUNetv2_install_pretrained_model_from_zip {shlex.quote(str(request.output / dataset))}.zip",
        f"  nnUNetv2_predict -d {dataset} -c {configuration} -tr {trainer} -p {plans} -f {' '.join(request.folds)} "
        "-i IN -o OUT -device cpu",
    ]


def agreement_table(found: Agreement) -> Table:
    """Dice and surface Dice per structure of the model in PyTorch and of the export, and the Dice between both."""
    table = Table("structure", "Dice PyTorch", "Dice export", "NSD PyTorch", "NSD export", "Dice between both")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, between in found.between.items():
        scores = [part.get(name, math.nan) for pair in (found.dice, found.nsd) for part in pair]
        table.add_row(name, *("-" if math.isnan(v) else f"{v:.4f}" for v in scores), f"{between:.5f}")
    return table
