"""A few inputs of every kind; ``make soak`` runs a hundred thousand."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nnunetv2_kd.errors import KDError
from tests.fuzz.targets import TARGETS

LONGEST = 20_000  # characters of a refusal


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=40, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_every_refusal_is_a_kderror(name, data):
    target = TARGETS[name]
    value = data.draw(target.inputs)
    refusal = ""
    with tempfile.TemporaryDirectory() as folder:
        try:
            target.run(value, Path(folder))
        except KDError as error:
            refusal = str(error)
    assert len(refusal) < LONGEST
