"""Commands and trainers in this process: what they do and print without the seconds in which torch and nnU-Net are
imported and plots are drawn."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from importlib.metadata import entry_points
from io import StringIO
from multiprocessing.pool import ThreadPool
from pathlib import Path
from unittest import mock

VALIDATION = "nnunetv2.training.nnUNetTrainer.nnUNetTrainer.nnUNetTrainer.perform_actual_validation"
# A training draws them after every epoch, which takes longer than an epoch of ours
PLOTS = (
    "nnunetv2.training.logging.nnunet_logger.MetaLogger.plot_progress_png",
    "nnunetv2_kd.trainers.progress.TermHistory._plot_epochs",
)


def run_in_process(
    program: str, arguments: Sequence[str], environment: Mapping[str, str], folder: Path, validate: bool = True
) -> subprocess.CompletedProcess[str]:
    """Call what the console script of an installed command calls.

    nnU-Net's pools become threads, and it counts one processor (tests/one_processor/sitecustomize.py says why).

    Args:
        environment: all the environment variables that the command sees.
        folder: the current folder for the command.
        validate: whether a training ends with nnU-Net's prediction of the validation cases, which takes half its time.

    Returns:
        its exit status, where an exception is 1 as in a process, and what it printed.
    """
    (script,) = entry_points(group="console_scripts", name=program)
    out, err = StringIO(), StringIO()
    with ExitStack() as stack:
        stack.enter_context(mock.patch.dict(os.environ, environment, clear=True))
        stack.enter_context(mock.patch("sys.argv", [program, *arguments]))
        stack.enter_context(mock.patch("multiprocessing.cpu_count", return_value=1))
        stack.enter_context(mock.patch("multiprocessing.context.BaseContext.Pool", _in_threads))
        for plot in PLOTS:
            stack.enter_context(mock.patch(plot))
        if not validate:
            stack.enter_context(mock.patch(VALIDATION))
        stack.enter_context(redirect_stdout(out))
        stack.enter_context(redirect_stderr(err))
        stack.enter_context(working_in(folder))
        status = _exit_status(script.load())
    return subprocess.CompletedProcess([program, *arguments], status, out.getvalue(), err.getvalue())


def _in_threads(context, processes: int) -> ThreadPool:
    """The part of a multiprocessing context that nnU-Net uses, with threads."""
    return ThreadPool(processes)


def _exit_status(function) -> int:
    """The exit status with which the console script's ``sys.exit(function())`` ends the process."""
    try:
        sys.exit(function())
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
    except (Exception, KeyboardInterrupt):
        try:
            sys.excepthook(*sys.exc_info())
        except SystemExit as end:  # a hook may choose the status
            return int(str(end.code))
    return 1


@contextmanager
def working_in(folder: Path) -> Iterator[None]:
    """`contextlib.chdir`, which Python 3.10 does not have."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
