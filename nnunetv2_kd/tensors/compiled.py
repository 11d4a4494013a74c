"""Loops that numba compiles, and keeps on disk if possible."""

import pickle
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from numba import njit


def compiled_once(function: Callable, **options: Any) -> Callable:
    """A function that numba compiles at its first call and keeps on disk. If nothing can be read or written there,
    every process compiles it.

    Args:
        options: of ``numba.njit``.
    """
    try:
        dispatcher = njit(cache=True, **options)(function)
    except RuntimeError:  # no folder to cache in, as in a container without a home
        return njit(**options)(function)
    dispatcher._cache = _CacheIfPossible(dispatcher._cache)
    return dispatcher


class _CacheIfPossible:
    """numba's cache of a function, which is skipped if it cannot be read or written, for example on a full disk."""

    def __init__(self, cache: Any) -> None:
        self._cache = cache

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cache, name)

    def load_overload(self, *signature: Any) -> Any:
        try:
            return self._cache.load_overload(*signature)
        except (OSError, EOFError, ValueError, pickle.UnpicklingError):  # numba compiles what it is not given
            return None

    def save_overload(self, *compiled_code: Any) -> None:
        with suppress(OSError):  # the next process compiles again
            self._cache.save_overload(*compiled_code)
