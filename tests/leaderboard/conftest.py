from pathlib import Path

import pytest

from tests.leaderboard.results import Results, eroded, record, shifted


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Results:
    """Two folds of data, no model yet."""
    made = Results(tmp_path)
    made.make_data()
    for variable in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{variable}", str(tmp_path / variable))
    monkeypatch.setenv("COLUMNS", "220")
    return made


@pytest.fixture
def family(results: Results) -> Results:
    """A teacher of stock nnU-Net, a student alone, two distilled students."""
    teacher = results.add("nnUNetTrainer", shifted(0), features=(8, 16))
    small = {"plans_name": "nnUNetPlansSmall"}
    results.add("nnUNetTrainerKDBaseline", eroded(3), kd=record("nnUNetTrainerKDBaseline"), **small)
    kd = record("nnUNetTrainerRegionKD", results.teacher_record(teacher))
    results.add("nnUNetTrainerRegionKD", eroded(2), kd=kd, **small)
    seen = record("nnUNetTrainerKD", results.teacher_record(teacher, seen=5))
    results.add("nnUNetTrainerKD", eroded(4), kd=seen, **small)
    return results
