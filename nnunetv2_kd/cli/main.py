"""``nnUNetv2_kd <sub-command>``."""

import argparse
import importlib
import sys
from collections.abc import Sequence

from nnunetv2_kd.cli.arguments import build_parser
from nnunetv2_kd.errors import KDError


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Arguments that a command does not know are an error, unless it hands them over to nnU-Net. Without a command the
    help is shown."""
    parser = build_parser()
    args, unknown = parser.parse_known_args(argv)
    if unknown and not hasattr(args, "for_nnunet"):
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if args.command is None:
        parser.print_help(sys.stderr)
        parser.exit(2)
    args.for_nnunet = unknown
    return args


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    command = importlib.import_module(f"nnunetv2_kd.cli.{args.command.replace('-', '_')}")  # seconds, which help spares
    try:
        return int(command.run(args))
    except KDError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
