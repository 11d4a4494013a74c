"""``nnUNetv2_kd leaderboard``: compare the trained models of a dataset, in the terminal and on one page."""

import argparse

import torch
from nnunetv2.configuration import default_num_processes

from nnunetv2_kd.leaderboard.board import make_boards
from nnunetv2_kd.leaderboard.request import LeaderboardRequest, check_request
from nnunetv2_kd.leaderboard.tables import print_board
from nnunetv2_kd.leaderboard.write import write_all
from nnunetv2_kd.nnunet.files import check_writable
from nnunetv2_kd.terminal import plain_console


def run(args: argparse.Namespace) -> int:
    console = plain_console()
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
        runtimes=args.runtime,
        precisions=args.precision,
        every_seed=args.every_seed,
        processes=default_num_processes if args.np is None else args.np,
    )
    check_request(request)
    if args.o is not None:
        check_writable(args.o)
    boards = make_boards(request, lambda line: console.print(line, style="dim", markup=False, highlight=False))
    written = (
        write_all(boards, args.o) if args.o is not None else []
    )  # before anything is shown, because it may be hours of work
    for board in boards:
        print_board(board, console, args.wide)
    for file in written:
        console.print(f"Written: {file}", soft_wrap=True, markup=False, highlight=False)
    return 0


def about_interruption(_: argparse.Namespace) -> str:
    return "No page and no table was written. Predictions for -i with -o are kept."
