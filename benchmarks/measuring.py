"""Time of a step, and peak memory of a process; shared by the benchmarks."""

import multiprocessing
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from nnunetv2_kd.inference.device import process_memory

Step = Callable[[], Any]


def seconds(step: Step, device: str) -> float:
    """Seconds of one step. On a CPU this is the processor time of all threads, which other load hardly changes."""
    if device != "cuda":
        started = time.process_time()
        step()
        return time.process_time() - started
    torch.cuda.synchronize()
    started = time.perf_counter()
    step()
    torch.cuda.synchronize()
    return time.perf_counter() - started


def in_turn(
    steps: dict[str, Step], rounds: int, warm_up: int, device: str, before: Callable[[int], None] | None = None
) -> dict[str, list[float]]:
    """Seconds of every step in every round that counts.

    Every round has another order, because a step's time depends on what the previous one leaves in caches and in the
    heap. ``before`` is called with the round's number before each step.
    """
    took: dict[str, list[float]] = {name: [] for name in steps}
    order = random.Random(0)
    for number in range(warm_up + rounds):
        for name in order.sample(list(steps), len(steps)):
            if before is not None:
                before(number)
            elapsed = seconds(steps[name], device)
            if number >= warm_up:
                took[name].append(elapsed)
    return took


def high_water_mark(device: str) -> float:
    return torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else process_memory("VmHWM")


def reset_high_water_mark(device: str) -> float:
    """Reset the peak to the memory now in use, and return that in MiB."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")
    return high_water_mark(device)


def in_its_own_process(target: Callable[..., None], *arguments: Any) -> float:
    """Run a target in its own process; returns what it puts into the queue, its last argument."""
    context = multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    process = context.Process(target=target, args=(*arguments, queue))
    process.start()
    process.join()
    if process.exitcode != 0:
        raise RuntimeError(f"{target.__name__} ended with exit code {process.exitcode}")
    return queue.get()
