"""``nnUNetv2_kd <sub-command>``."""

import argparse
import gc
import importlib
import sys
from collections.abc import Sequence
from types import ModuleType

from nnunetv2_kd.cli.arguments import build_parser
from nnunetv2_kd.errors import KDError
from nnunetv2_kd.interruption import handle_sigterm_like_ctrl_c, status_of


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the arguments. Unknown ones are an error, unless the command passes them on to nnU-Net. Without a command,
    show the help."""
    parser = build_parser()
    args, unknown = parser.parse_known_args(argv)
    if unknown and not hasattr(args, "for_nnunet"):
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if args.command is None:
        parser.print_help(sys.stderr)
        parser.exit(2)
    args.for_nnunet = unknown
    return args


def import_command(name: str, whole_process: bool) -> ModuleType:
    """Import a sub-command's module, with torch and nnU-Net. This takes seconds, which --help avoids.

    Args:
        whole_process: whether the process runs only this command. Garbage collection is then off during the import, and
            skips the imported objects when the process ends, which would take as long as the import itself.
    """
    if whole_process:
        gc.disable()
    module = importlib.import_module(f"nnunetv2_kd.cli.{name.replace('-', '_')}")
    if whole_process:
        gc.freeze()
        gc.enable()
    return module


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    if argv is None:
        handle_sigterm_like_ctrl_c()
    about = "Nothing was started yet."
    try:
        command = import_command(args.command, whole_process=argv is None)
        from nnunetv2_kd.nnunet.trust import trusting  # --help imports nothing else
        from nnunetv2_kd.terminal import allow_any_character

        allow_any_character()
        about = command.about_interruption(args) if hasattr(command, "about_interruption") else ""
        with trusting(getattr(args, "trust", False)):
            return int(command.run(args))
    except KeyboardInterrupt as interruption:
        print(f"\nInterrupted. {about}".rstrip(), file=sys.stderr)
        return status_of(interruption)
    except KDError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
