"""Wait for something that another process does."""

import time
from collections.abc import Callable

PATIENCE = 1800.0  # seconds for anything


def wait_until(happens: Callable[[], bool], what: str, seconds: float = PATIENCE) -> None:
    end = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < end, f"{what}: not within {seconds:.0f} s"
        time.sleep(0.5)
