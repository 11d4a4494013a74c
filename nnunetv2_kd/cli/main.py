"""``nnUNetv2_kd <sub-command>``."""

import argparse
import sys
from collections.abc import Sequence

from nnunetv2_kd import __version__
from nnunetv2_kd.cli import benchmark, demo, doctor, leaderboard, plan, predict, split_teachers, store
from nnunetv2_kd.errors import KDError

COMMANDS = (plan, split_teachers, store, predict, benchmark, leaderboard, doctor, demo)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nnUNetv2_kd",
        description="Knowledge distillation for nnU-Net v2. A student is trained with nnU-Net's own command: "
        "nnUNetv2_train DATASET CONFIGURATION FOLD -tr nnUNetTrainerRegionKD. The sub-commands here help around it.",
    )
    parser.add_argument("--version", action="version", version=f"nnunetv2_kd {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add_parser(subparsers)
    return parser


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Arguments that a command does not know are an error, unless it hands them over to nnU-Net."""
    parser = build_parser()
    args, unknown = parser.parse_known_args(argv)
    if unknown and not hasattr(args, "for_nnunet"):
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    args.for_nnunet = unknown
    return args


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    try:
        return int(args.run(args))
    except KDError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
