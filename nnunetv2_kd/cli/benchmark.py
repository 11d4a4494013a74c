"""``nnUNetv2_kd benchmark``: how much faster and smaller a student is than its teacher, on this device."""

import argparse
from pathlib import Path
from typing import Any

from rich.console import Console

from nnunetv2_kd.cli.predict import SPEEDS
from nnunetv2_kd.nnunet.files import check_writable


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "benchmark",
        help="time trained models against each other",
        description="Parameters, FLOPs, peak memory and milliseconds per case of trained models on this device, from "
        "image to segmentation through nnU-Net's predictor, and how many times faster than the first each is.",
    )
    parser.add_argument("-m", nargs="+", type=Path, default=[], metavar="FOLDER", help="model folders, teacher first")
    parser.add_argument("-d", metavar="DATASET", help="or all trained models of a dataset, the largest first")
    parser.add_argument("-c", nargs="+", metavar="CONFIGURATION", help="of -d, only these")
    parser.add_argument("-p", nargs="+", metavar="PLANS", help="of -d, only these")
    parser.add_argument("-tr", nargs="+", metavar="TRAINER", help="of -d, only these")
    parser.add_argument("-f", metavar="FOLD", help="default: the first that is trained")
    parser.add_argument("-i", type=Path, metavar="IMAGES", help="default: the validation cases of the fold")
    parser.add_argument("--cases", type=int, default=5, metavar="N", help="default: 5")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="of every case; default: 3")
    parser.add_argument("-device", default="cuda", choices=("cuda", "cpu", "mps"), help="default: cuda")
    parser.add_argument(
        "--cpu_speed",
        nargs="+",
        choices=SPEEDS,
        default=["float32"],
        metavar="WAY",
        help=f"ways to compute on a CPU, one line of the table each: {', '.join(SPEEDS)}; default: float32, nnU-Net's",
    )
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers into a file too")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    import torch  # what follows needs torch, pandas and SciPy, which `--help` does not

    from nnunetv2_kd.benchmark.run import BenchmarkRequest, benchmark
    from nnunetv2_kd.benchmark.table import print_benchmark, to_json, to_markdown

    console = Console()
    if args.json is not None:
        check_writable(args.json.absolute().parent, "--json")
    request = BenchmarkRequest(
        device=torch.device(args.device),
        folders=args.m,
        dataset=args.d,
        configurations=args.c,
        plans=args.p,
        trainers=args.tr,
        fold=args.f,
        images=args.i,
        cases=args.cases,
        repeats=args.repeats,
        cpu_speeds=args.cpu_speed,
    )
    found = benchmark(request, lambda line: Console(stderr=True).print(line, style="dim", markup=False))
    if args.markdown:
        print(to_markdown(found), end="")
    else:
        print_benchmark(found, console)
    if args.json is not None:
        args.json.write_text(to_json(found) + "\n")
    return 0
