"""How nnU-Net's commands end if they cannot continue: with a message, printed once, and without a traceback."""

import difflib
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import nnunetv2

from nnunetv2_kd.discovery import VARIABLE
from nnunetv2_kd.errors import KDError
from nnunetv2_kd.interruption import handle_sigterm_like_ctrl_c, status_of
from nnunetv2_kd.terminal import allow_any_character
from nnunetv2_kd.trainers.variants import split_name

NOT_FOUND = re.compile(r"Could not find requested nnunet trainer (\w+) in ")
PREFIX = "nnunettrainer"  # users often leave it out
EPOCHS = re.compile(r"_\d*epochs?$")
CLASS = re.compile(r"^class (\w+)\(", re.MULTILINE)


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM, with a message for the user."""


def install_exit_messages() -> None:
    """From now on, our errors end this process with their message and without a traceback; all other errors are shown
    as before. This is done in nnU-Net's commands only."""
    allow_any_character()
    if Path(sys.argv[0]).name.startswith("nnUNetv2_") and not isinstance(sys.excepthook, _Hook):
        sys.excepthook = _Hook(sys.excepthook)
        handle_sigterm_like_ctrl_c()


@contextmanager
def interruptible(about: Callable[[], str]) -> Iterator[None]:
    """Within this context, Ctrl-C or SIGTERM ends the process with one line.

    Args:
        about: returns that line; called when this happens.
    """
    try:
        yield
    except KeyboardInterrupt as interrupt:
        raise Interrupted(about()) from interrupt


def exit_message(error: BaseException) -> str | None:
    """The message to show instead of an error's traceback; None for errors that are not ours to explain."""
    if isinstance(error, KDError):
        return f"Error: {error}"
    if isinstance(error, Interrupted):
        return str(error)
    found = NOT_FOUND.match(str(error)) if isinstance(error, RuntimeError) else None
    if found is None or Path(sys.argv[0]).name != "nnUNetv2_train":
        return None  # a prediction takes the name from a checkpoint, where it cannot be a typing error
    return f"Error: There is no trainer {found[1]}. {did_you_mean(found[1], trainer_names())}"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Suggest the trainer with the most similar name, ignoring the number of epochs."""
    suffix = EPOCHS.search(name)
    number = re.search(r"\d+", suffix[0]) if suffix else None
    ending = "" if number is None else f"_{number[0]}epoch{'' if number[0] == '1' else 's'}"
    base = split_name(EPOCHS.sub("", name))[0]
    ending = EPOCHS.sub("", name)[len(base) :] + ending  # nnU-Net's variants
    asked, lower = base.lower(), {trainer.lower(): trainer for trainer in known}
    close = difflib.get_close_matches(asked, lower, n=1, cutoff=0.75)
    if not close:
        short = {trainer.removeprefix(PREFIX): trainer for trainer in lower}
        found = difflib.get_close_matches(asked.removeprefix(PREFIX), short, n=1, cutoff=0.75)
        close = [short[name] for name in found]
    if not close:
        return f"Trainers of nnunetv2_kd: {', '.join(sorted(t for t in lower.values() if 'KD' in t))}."
    return f"Did you mean -tr {_with_epochs(lower[close[0]], ending)}?"


def trainer_names() -> list[str]:
    """Trainers of nnU-Net, of the user's own folders, and of this package. Read from files; nothing is imported."""
    from nnunetv2_kd.trainers import TRAINERS  # imported here, because the mixin imports this module

    folders = [Path(nnunetv2.__path__[0]) / "training" / "nnUNetTrainer"]
    folders += [Path(folder) for folder in os.environ.get(VARIABLE, "").split(os.pathsep) if folder.strip()]
    files = [file for folder in folders for file in sorted(folder.rglob("*.py"))]
    named = [name for file in files for name in CLASS.findall(file.read_text(errors="replace"))]
    return [*(trainer.__name__ for trainer in TRAINERS), *(name for name in named if "Trainer" in name)]


class _Hook:
    """Shows an uncaught exception."""

    def __init__(self, before: Callable[..., Any]) -> None:
        self.before = before

    def __call__(self, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        words = exit_message(error)
        if words is None:
            self.before(kind, error, trace)
        else:
            print(f"\n{words}", file=sys.stderr)
            if isinstance(error, Interrupted):
                sys.exit(status_of(error))  # sets the exit status of the process


def _with_epochs(trainer: str, ending: str) -> str:
    """Add the epochs to a name: our trainers take any number, nnU-Net's have names for some numbers only."""
    return trainer + ending if "KD" in trainer else trainer
