"""A few of the kills that ``make soak`` makes many of."""

import sys

import pytest

from tests.conftest import copy_of
from tests.soak.kills import kill_trainings

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="fork")]


def test_a_killed_training_ends_as_one_that_was_not(trained_world, tmp_path):
    counts = kill_trainings(copy_of(trained_world, tmp_path / "base"), 2, lambda line: None)
    assert counts["kills"] >= 2
