"""The running command, in a form that can be typed again."""

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from nnunetv2_kd.trainers.options import NAME, SEED, VARIABLE, options_file


def current_command(*added: str, **environment: str | Path | None) -> str:
    """The command of this process, with the environment variables that affect the student.

    Args:
        added: one more flag, with its value if it has one; replaces a value given before.
        environment: other values for the variables; None leaves one out.
    """
    program, *arguments = sys.argv
    return command_with([Path(program).name, *arguments], added, **{**_own_environment(), **environment})


def restart_command(**environment: str | Path | None) -> str:
    """Like `current_command`, for a training that starts from scratch."""
    program, *arguments = sys.argv
    kept = [argument for argument in arguments if argument != "--c"]
    return command_with([Path(program).name, *kept], (), **{**_own_environment(), **environment})


def command_with(command: Sequence[str], added: Sequence[str] = (), **environment: str | Path | None) -> str:
    """A command with a flag added, preceded by the variables that it needs; see `current_command`."""
    variables = [f"{name}={shlex.quote(str(value))}" for name, value in environment.items() if value is not None]
    arguments = list(command)
    if added and added[0] in arguments:
        place = arguments.index(added[0])
        del arguments[place : place + len(added)]
    return " ".join([*variables, shlex.join([*arguments, *added])])


def _own_environment() -> dict[str, str | Path | None]:
    """The variables, with the options file's full path, so that the command works in any folder."""
    file = options_file()
    found: dict[str, str | Path | None] = {VARIABLE: file.absolute() if file is not None else None}
    return found | {name: os.environ.get(name, "").strip() or None for name in (NAME, SEED)}
