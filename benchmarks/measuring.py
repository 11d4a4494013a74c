"""Time of a step, and peak memory of a process: what the benchmarks share."""

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
    """Of one step; on the CPU processor time of all threads, which other programs on the machine hardly change."""
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

    Every round has an order of its own, because a step's time depends on what the one before it leaves in caches and
    in the heap. ``before`` is called with the round's number before each step.
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
    """Set the peak back to what is in use now, and return that, in MiB."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")
    return high_water_mark(device)


def in_its_own_process(target: Callable[..., None], *arguments: Any) -> float:
    """What the target puts into the queue that it is given last."""
    context = multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    process = context.Process(target=target, args=(*arguments, queue))
    process.start()
    process.join()
    if process.exitcode != 0:
        raise RuntimeError(f"{target.__name__} ended with exit code {process.exitcode}")
    return queue.get()
