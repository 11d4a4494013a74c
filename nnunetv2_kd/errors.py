"""This package's error class, and a list of problems as text."""

from collections.abc import Sequence


class KDError(RuntimeError):
    """A problem that the user can solve. The message says what was expected, what was found, and what to type."""


def listing(title: str, problems: Sequence[str]) -> str:
    """``title`` followed by one indented line per problem."""
    return "\n".join([title, *(f"  - {problem}" for problem in problems)])
