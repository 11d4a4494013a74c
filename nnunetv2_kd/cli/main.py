"""``nnUNetv2_kd <sub-command>``."""

import argparse
import sys
from collections.abc import Sequence

from nnunetv2_kd import __version__
from nnunetv2_kd.cli import demo, doctor, leaderboard, plan, split_teachers, store
from nnunetv2_kd.errors import KDError

COMMANDS = (plan, split_teachers, store, leaderboard, doctor, demo)


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


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    try:
        return int(args.run(args))
    except KDError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
