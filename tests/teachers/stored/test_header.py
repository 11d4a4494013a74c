"""JSON files of a store from a stranger."""

import json
import os

import numpy as np
import pytest

from nnunetv2_kd.errors import KDError
from nnunetv2_kd.teachers.stored.header import header_problems, is_case_record
from nnunetv2_kd.teachers.stored.store import Store
from tests.fuzz.targets import CASE, FINGERPRINT, HEADER


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "store.json").write_text(json.dumps(HEADER))
    (tmp_path / "x.json").write_text(json.dumps(CASE))
    return tmp_path


def test_what_is_written_is_read(folder):
    assert list(Store(folder).cases) == ["x"]


@pytest.mark.parametrize(
    "content",
    ["[]", "{}", "null", "{", '{"schema": 1}', "[" * 100_000],
    ids=["list", "keys", "null", "cut", "bare", "deep"],
)
def test_headers_that_are_none(folder, content):
    (folder / "store.json").write_text(content)
    with pytest.raises(KDError, match=r"store\.json (.|\n)*Delete the folder and store again"):
        Store(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cases": ["../../x"]}, "cases: expected names of cases"),
        ({"heads": [3]}, "heads"),
        ({"labels": {"a": 1}}, "labels"),
        ({"teachers": []}, "teachers: expected one or several"),
        ({"teachers": [{}]}, "teachers: folder: expected text"),
        ({"teachers": [HEADER["teachers"][0] | {"fold": "../../0"}]}, "fold: expected a number or all"),
        ({"teachers": [HEADER["teachers"][0] | {"fingerprint": {}}]}, "fingerprint"),
        ({"known": ["a"]}, "known"),
    ],
)
def test_headers_with_something_else_in_them(change, message):
    assert any(line.startswith(message) or message in line for line in header_problems(HEADER | change))


@pytest.mark.parametrize(
    "record",
    [
        {},
        [],
        None,
        CASE | {"files": {"../../secret": FINGERPRINT}},
        CASE | {"data": {"../../secret": FINGERPRINT}},
        CASE | {"files": {"x.b2nd": 3, "x.npz": 3}},
        CASE | {"error": "small"},
        CASE | {"dice": [[]]},
    ],
)
def test_a_record_of_something_else_is_a_case_that_is_not_stored(folder, record):
    assert not is_case_record(record, "x")
    (folder / "x.json").write_text(json.dumps(record))
    store = Store(folder)
    assert store.cases == {}
    assert store.problem("x", folder) == "x: not stored"


class RunsACommand:
    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.system, (f"touch {self.file}",)


def test_vectors_that_carry_code_are_not_run(folder):
    np.savez(folder / "x.npz", allow_pickle=True, a=np.array([RunsACommand(folder / "RAN")], dtype=object))
    with pytest.raises(KDError, match=r"x\.npz cannot be read \(ValueError\)\. Delete it, and store again"):
        Store(folder).vectors("x")
    assert not (folder / "RAN").exists()
