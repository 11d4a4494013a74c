"""Trainers in this process."""

import pytest

from tests.conftest import World
from tests.trainers.helpers import inside


@pytest.fixture
def here(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    """`world`, with this process working in its folders."""
    return inside(world, monkeypatch)
