"""Find mistakes in nnU-Net's path variables: quotes or ``~``, which a shell would have replaced, or a relative path."""

import os
import shlex
from pathlib import Path

QUOTES = "\"'“”‘’"


def mistake_in(value: str) -> str:
    """What is wrong with the value of a path variable, in words; empty if nothing is.

    >>> mistake_in("~/nnUNet_raw"), mistake_in("/data/nnUNet_raw")
    ('begins with ~, which a shell replaces, but a program does not', '')
    """
    if value != value.strip(QUOTES + " \t\r\n"):
        return "has quotes or spaces around its path, which a shell removes, but a .env file and Windows' set do not"
    if value.startswith("~"):
        return "begins with ~, which a shell replaces, but a program does not"
    if not value:
        return "is empty"
    return "" if os.path.isabs(value) else f"is relative (here to {Path.cwd()}), and means another folder elsewhere"


def corrected_path(value: str) -> Path:
    """The full path that was probably meant."""
    bare = value.strip(QUOTES + " \t\r\n")
    return Path(os.path.abspath(os.path.expanduser(bare)))


def export_line(name: str, value: str) -> str:
    """The command that sets the variable to what was probably meant, and creates the folder if it is missing."""
    if not value.strip(QUOTES + " \t\r\n"):
        return f"export {name}=/path/to/{name}"
    folder = corrected_path(value)
    made = "" if folder.is_dir() else f" && mkdir -p {shlex.quote(str(folder))}"
    return f"export {name}={shlex.quote(str(folder))}{made}"


def problem_of(name: str) -> str:
    """An error message if the value of a variable is a mistake, with the command that corrects it; otherwise empty. A
    relative path that exists is accepted."""
    value = os.environ.get(name, "")
    mistake = mistake_in(value)
    if not mistake or (os.path.isdir(value) and value.strip(QUOTES) == value):
        return ""
    return f"The environment variable {name} {mistake}: {value}. Correct it: {export_line(name, value)}"
