"""``nnUNetv2_kd leaderboard``: compare the trained models of a dataset, on the terminal and on one page."""

import argparse
from pathlib import Path
from typing import Any

from nnunetv2.configuration import default_num_processes
from rich.console import Console

from nnunetv2_kd.nnunet.files import check_writable

EPILOG = """Without -i the numbers are those of nnU-Net's own validation of each fold. What the columns and marks mean:
docs/leaderboard.md."""


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "leaderboard",
        help="compare trained models",
        description="Compare every trained model of a dataset: Dice, surface distances, cost, and whether differences "
        "are real. Prints a table; with -o also writes CSV, JSON, Markdown, LaTeX and a page for the browser.",
        epilog=EPILOG,
    )
    parser.add_argument("-d", nargs="+", required=True, metavar="DATASET", help="dataset ids or names")
    parser.add_argument("-c", nargs="+", metavar="CONFIGURATION", help="only these; default: all")
    parser.add_argument("-f", nargs="+", metavar="FOLD", help="only these; default: all that are trained")
    parser.add_argument("-o", type=Path, metavar="FOLDER", help="where to write; default: print the table only")
    parser.add_argument("-i", type=Path, metavar="IMAGES", help="predict these images instead (CASE_0000.nii.gz ...)")
    parser.add_argument("-gt", type=Path, metavar="LABELS", help="their ground truth (CASE.nii.gz)")
    parser.add_argument("--reference", metavar="NAME", help="test the others against this model (a part will do)")
    parser.add_argument("--teacher", metavar="NAME", help="the teacher of the students; default: as recorded in them")
    parser.add_argument("--tolerance", type=float, default=1.0, metavar="MM", help="of the surface Dice; default: 1.0")
    parser.add_argument("--time", type=int, default=0, metavar="N", help="time every model on N cases; default: 0")
    parser.add_argument("-np", type=int, default=default_num_processes, metavar="N", help="processes for scoring")
    parser.add_argument("-device", default="cuda", choices=("cuda", "cpu", "mps"), help="for -i and --time")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    import torch  # what follows needs torch, pandas and SciPy, which `--help` does not

    from nnunetv2_kd.leaderboard.run import LeaderboardRequest, check_request, make_boards
    from nnunetv2_kd.leaderboard.tables import print_board

    console = Console()
    request = LeaderboardRequest(
        datasets=args.d,
        device=torch.device(args.device),
        configurations=args.c,
        folds=args.f,
        output=args.o,
        images=args.i,
        truths=args.gt,
        reference=args.reference,
        teacher=args.teacher,
        tolerance=args.tolerance,
        timed=args.time,
        processes=args.np,
    )
    check_request(request)
    if args.o is not None:
        check_writable(args.o)
    boards = make_boards(request, lambda line: console.print(line, style="dim", markup=False, highlight=False))
    for board in boards:
        print_board(board, console)
    if args.o is not None:
        from nnunetv2_kd.leaderboard.write import write_all

        for file in write_all(boards, args.o):
            console.print(f"Written: {file}", soft_wrap=True, markup=False, highlight=False)
    return 0
