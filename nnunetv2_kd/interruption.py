"""Ctrl-C and SIGTERM end a command in the same way, each with its own exit status, and the processes that it started
leave nothing behind."""

import ctypes
import multiprocessing.util
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

CTRL_C, TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGTERM  # as shells do
AGAIN = 0.2  # seconds
PR_SET_PDEATHSIG = 1  # of prctl(2)
_installed: set[str] = set()


class Terminated(KeyboardInterrupt):
    """SIGTERM, which a cluster sends before it kills a job."""


def status_of(error: BaseException) -> int:
    """The exit status of a process that this interruption ends: 143 for SIGTERM, 130 for Ctrl-C."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, Terminated):
            return TERMINATED
        cause = cause.__cause__
    return CTRL_C


def handle_sigterm_like_ctrl_c() -> None:
    """From now on, SIGTERM ends this process as Ctrl-C does. A second SIGTERM does not interrupt the cleaning up.
    Forked processes still end at once. Does nothing if the signal already has another handler."""
    is_main = threading.current_thread() is threading.main_thread()
    if "sigterm" in _installed or not is_main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        return
    _installed.add("sigterm")
    signal.signal(signal.SIGTERM, _terminate)
    sys.unraisablehook = _NotLost(sys.unraisablehook)
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=lambda: signal.signal(signal.SIGTERM, signal.SIG_DFL))


def end_children_with_process() -> None:
    """Processes forked from now on do not outlive this one, even if it is killed (Linux). What they put into the
    temporary folder is removed when this process ends, however they end."""
    multiprocessing.util.get_temp_dir()  # if a child made it, it would remain when the child is terminated
    if "children" in _installed or sys.platform != "linux":
        return
    _installed.add("children")
    prctl = ctypes.CDLL(None).prctl
    os.register_at_fork(after_in_child=lambda: prctl(PR_SET_PDEATHSIG, signal.SIGKILL))


@contextmanager
def shield_children_from_interrupts() -> Iterator[None]:
    """Processes started within this context ignore Ctrl-C and print nothing about it; the process that started them
    ends them."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _NotLost:
    """Repeats an interruption a moment later if it came where Python ignores exceptions, such as right after a fork."""

    def __init__(self, before: Any) -> None:
        self.before = before

    def __call__(self, unraisable: Any) -> None:
        if not isinstance(unraisable.exc_value, KeyboardInterrupt):
            self.before(unraisable)
            return
        sent = signal.SIGINT
        if isinstance(unraisable.exc_value, Terminated):
            sent = signal.SIGTERM
            signal.signal(signal.SIGTERM, _terminate)
        again = threading.Timer(AGAIN, os.kill, (os.getpid(), sent))
        again.daemon = True
        again.start()


def _terminate(*_: Any) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise Terminated
