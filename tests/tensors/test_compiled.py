"""Loops that numba compiles, where they cannot be kept."""

import os
import subprocess
import sys

import numpy as np
import pytest
from numba.core.caching import NullCache

from nnunetv2_kd.regions import cpu_kernels
from nnunetv2_kd.tensors.compiled import compiled_once
from tests.room_on_disk import fill, small_disk

LOOP = """
import numpy as np
from nnunetv2_kd.inference.interpolation import largest_two
print(largest_two(np.eye(3, dtype=np.float32)[:, None, None])[0].ravel().tolist())
"""


def test_compiled_anew_where_nothing_can_be_kept(monkeypatch):
    """A container without a home: numba has no folder for what it compiled."""
    monkeypatch.setattr("numba.core.caching.CacheImpl._locator_classes", [])
    compiled = cpu_kernels.compile_kernel(cpu_kernels.spread.py_func)
    assert isinstance(compiled._cache, NullCache)
    maps = np.empty((1, 2), np.float32)
    one = np.ones(1, np.float32)
    compiled(np.full((1, 1), 3, np.float32), np.array([0]), np.array([2]), np.array([0]), one, maps)
    assert maps.tolist() == [[3, 3]]


def twice(x):
    return x * 2


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), PermissionError(13, "Permission denied")])
def test_what_cannot_be_written_is_compiled_all_the_same(monkeypatch, error):
    def refuse(*_):
        raise error

    monkeypatch.setattr("numba.core.caching.Cache.save_overload", refuse)
    assert compiled_once(twice, nogil=True)(3) == 6


def test_a_cache_on_a_full_disk(tmp_path):
    """numba makes its folders and finds no room for what goes into them."""
    with small_disk(tmp_path / "cache", 1) as cache:
        fill(cache)
        env = os.environ | {"NUMBA_CACHE_DIR": str(cache)}
        done = subprocess.run([sys.executable, "-W", "ignore", "-c", LOOP], env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == "[0, 1, 2]"
        assert not list(cache.rglob("*.nbc"))
