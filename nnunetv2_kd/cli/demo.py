"""``nnUNetv2_kd demo``: see a student being distilled, in minutes, on bundled real data."""

import argparse
from pathlib import Path
from typing import Any

from rich.console import Console

EPILOG = """The data are 32 cases of the Medical Segmentation Decathlon's hippocampus task (CC-BY-SA 4.0, see
ATTRIBUTION.md in the demo's data folder)."""


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "demo",
        help="distil a student on bundled real data",
        description="Train a small teacher, a student alone and a distilled student with nnU-Net's own commands on "
        "bundled hippocampus cases, and compare them. Runs on a CPU; nothing of yours is touched.",
        epilog=EPILOG,
    )
    parser.add_argument("-o", type=Path, default=Path("demo_output"), metavar="FOLDER", help="default: demo_output")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.add_argument("--smoke", action="store_true", help="two training iterations only, to check the installation")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from nnunetv2_kd.demo.run import run_demo  # what follows needs torch and matplotlib, which `--help` does not

    console = Console()
    output = args.o.absolute()
    run_demo(output, args.seed, console, args.smoke)
    from nnunetv2_kd.demo.report import measure, picture, table_of

    console.print(table_of(measure(output)))
    console.print(f"Picture: {picture(output)}", soft_wrap=True)
    console.print(f"Models, predictions and numbers: {output}", soft_wrap=True)
    return 0
