"""Work on several cases at once, in threads: read the next ones and write the last ones while one is predicted.

nnU-Net starts processes for this. Each imports torch and nnU-Net again, which takes seconds even for a single case.
Threads suffice, because the slow work outside the network (reading, resampling, writing) releases Python's GIL.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class Prefetched(Generic[T, R]):
    """Items with the results of a function, in order. As many results as there are workers are computed ahead.

    Args:
        function: called with every item.
        items: the items.
        workers: number of threads; 0: no threads, each result is computed when it is needed.

    If the function raises an exception, it is returned in place of the result.
    """

    def __init__(self, function: Callable[[T], R], items: Sequence[T], workers: int) -> None:
        self._function = function
        self._items = items
        self._workers = min(workers, len(items))

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[tuple[T, R | Exception]]:
        if self._workers == 0:
            for item in self._items:
                yield item, self._try(item)
            return
        with ThreadPoolExecutor(self._workers) as pool:
            waiting: deque[tuple[T, Future]] = deque()
            remaining = iter(self._items)
            for item in remaining:
                waiting.append((item, pool.submit(self._try, item)))
                if len(waiting) > self._workers:
                    break
            while waiting:
                item, future = waiting.popleft()
                yield item, future.result()
                for following in remaining:
                    waiting.append((following, pool.submit(self._try, following)))
                    break

    def _try(self, item: T) -> R | Exception:
        try:
            return self._function(item)
        except Exception as error:  # reported by the caller, with the item's name
            return error


class Background:
    """Calls functions in threads. To limit memory, it waits while too many of them are unfinished."""

    def __init__(self, workers: int) -> None:
        self._pool = ThreadPoolExecutor(workers) if workers else None
        self._most = 2 * workers
        self._futures: dict[str, Future] = {}
        self.failed: dict[str, Exception] = {}

    def __call__(self, name: str, function: Callable[[], object]) -> None:
        if self._pool is None:
            try:
                function()
            except Exception as error:  # reported at the end, with the name
                self.failed[name] = error
            return
        while len(self._futures) >= self._most:
            self._collect(next(iter(self._futures)))
        self._futures[name] = self._pool.submit(function)

    def finish(self) -> None:
        for name in list(self._futures):
            self._collect(name)
        if self._pool is not None:
            self._pool.shutdown()

    def _collect(self, name: str) -> None:
        error = self._futures.pop(name).exception()
        if isinstance(error, Exception):
            self.failed[name] = error
        elif error is not None:
            raise error
