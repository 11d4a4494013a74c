"""Print safely on any terminal."""

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def allow_any_character() -> None:
    """From now on, a character that the terminal or pipe cannot show (with ASCII or a Windows code page) is printed as
    a question mark instead of ending the command."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a test or a notebook may have put something else in its place
            stream.reconfigure(errors="replace")


def plain_console(stderr: bool = False) -> "Console":
    """A console that prints names and paths unchanged: ``[red]`` in a name is not a colour, and ``[/x]``
    not an error."""
    from rich.console import Console  # --help does not need it

    return Console(stderr=stderr, markup=False, highlight=False)
