"""The one error class of this package, and how several problems are told at once."""

from collections.abc import Sequence


class KDError(RuntimeError):
    """Something the user can mend. The message names what was expected, what was found, and what to type."""


def listing(title: str, problems: Sequence[str]) -> str:
    """``title`` followed by one indented line per problem."""
    return "\n".join([title, *(f"  - {problem}" for problem in problems)])
