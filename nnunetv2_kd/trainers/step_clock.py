"""Measure how long an epoch takes, and the teacher's share of a training step."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

MEASURED = 10  # measure every tenth step


class StepClock:
    """Times some steps of an epoch, and the teacher's part of them. On a GPU it uses CUDA events, so that nothing waits
    for the GPU during the epoch.

    Args:
        device: the device used for training.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._spans: dict[str, list[tuple[Any, Any]]] = {"step": [], "teacher": []}
        self._measures = False

    @contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Time a training step. The first of an epoch is not timed, because it includes one-time start-up work."""
        self._measures = number % MEASURED == MEASURED // 2
        with self._span("step"):
            yield
        self._measures = False

    @contextmanager
    def teacher(self) -> Iterator[None]:
        """Time the teacher's part of a step."""
        with self._span("teacher"):
            yield

    def share(self) -> float | None:
        """The teacher's share since the last call, in [0, 1]; None if nothing was timed."""
        if self._on_gpu:
            torch.cuda.synchronize()
        step, teacher = (sum(self._seconds(*span) for span in self._spans[name]) for name in ("step", "teacher"))
        self._spans = {"step": [], "teacher": []}
        return teacher / step if step > 0 else None

    @contextmanager
    def _span(self, name: str) -> Iterator[None]:
        if not self._measures:
            yield
            return
        begin = self._now()
        yield
        self._spans[name].append((begin, self._now()))

    def _now(self) -> Any:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _seconds(self, begin: Any, end: Any) -> float:
        return float(begin.elapsed_time(end)) / 1000 if self._on_gpu else end - begin


def time_to_end(seconds: float, epochs: int) -> str:
    """The time that so many epochs of so many seconds take, such as ``3 h 20 min``."""
    minutes = round(seconds * epochs / 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min" if minutes >= 2 else f"{seconds * epochs:.0f} s"
