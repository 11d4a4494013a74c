"""The examples in docstrings are true."""

import doctest
import importlib

import pytest

MODULES = (
    "config",
    "formatting",
    "nnunet.datasets",
    "students.coarser",
    "students.part_of_teacher",
    "students.shrink",
)


@pytest.mark.parametrize("module", MODULES)
def test_examples(module):
    results = doctest.testmod(importlib.import_module(f"nnunetv2_kd.{module}"))
    assert results.attempted > 0
    assert results.failed == 0
