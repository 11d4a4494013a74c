"""What is printed, on whatever terminal there is."""

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def let_print_everything() -> None:
    """From now on a character that the terminal or pipe cannot show, where all is ASCII or a code page of Windows, is
    printed as a question mark, and ends no command."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # not where a test or a notebook has put something else in its place
            stream.reconfigure(errors="replace")


def plain_console(stderr: bool = False) -> "Console":
    """A console that prints names and paths as they are: ``[red]`` in one is no colour, and ``[/x]`` no error."""
    from rich.console import Console  # help does without

    return Console(stderr=stderr, markup=False, highlight=False)
