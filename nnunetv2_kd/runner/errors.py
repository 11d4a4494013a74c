"""The one error class of the runner."""


class RunnerError(RuntimeError):
    """Something the user can mend. The message names what was expected, what was found, and what to do."""


def first_line(error: BaseException) -> str:
    """What a library's error says, in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no reason given'}"
