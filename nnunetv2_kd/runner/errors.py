"""The one error class of the runner."""


class RunnerError(RuntimeError):
    """A problem that the user can solve. The message says what was expected, what was found, and what to do."""


def first_line(error: BaseException) -> str:
    """The message of a library's error, in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no reason given'}"
