"""The published tables match the files of the trainings."""

import importlib.util
import json
from pathlib import Path

import pytest

ACCURACY = Path(__file__).parents[1] / "benchmarks" / "accuracy"


@pytest.fixture(scope="module")
def report():
    spec = importlib.util.spec_from_file_location("report", ACCURACY / "report.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_pages_show_what_the_files_say(report):
    runs = report.read_runs()
    for page in report.PAGES:
        text = page.read_text()
        assert report.rendered(text, runs) == text, "run: make results"


def test_dice_is_the_mean_of_its_structures(report):
    for run in report.read_runs():
        assert run["dice"] == pytest.approx(sum(run["dice_per_structure"].values()) / 2, abs=2e-4)


def test_every_training_of_a_study_has_the_options_of_its_arm(report):
    for file in sorted((ACCURACY / "results").glob("*/*.json")):
        run = json.loads(file.read_text())
        assert run["study"] == file.parent.name
        assert run["iterations"] == run["training"]["epochs"] * run["training"]["iterations_per_epoch"]
        assert run["options"]["seed"] == run["seed"]


def test_difference(report):
    def run(seed, dice):
        return {"seed": seed, "dice": dice, "dice_per_case": {str(case): {"a": dice + case / 100} for case in range(8)}}

    one, other = ([run(0, 0.7), run(1, 0.72)], [run(0, 0.6), run(1, 0.66), run(2, 0.9)])
    assert report.difference_cell(one, other).startswith("+0.080 (p 0.0078")
    assert report.difference_cell(one, other).endswith("beyond the spread)")
    assert "beyond" not in report.difference_cell(one[:1], other)
    assert report.difference_cell(one, []) == "-"
    assert report.difference_cell(one, one) == "+0.000 (p 1)"
    assert report.seeds_cell(one) == "0.710 (0.700 0.720)"
