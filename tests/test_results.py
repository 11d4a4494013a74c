"""The published tables match the files of the trainings."""

import importlib.util
import json
from pathlib import Path

import pytest
import yaml

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


def test_expectations_are_of_trainings_that_the_studies_have(report):
    """A name with a slip in it would be shown as not run."""
    studies = {file.stem: yaml.safe_load(file.read_text()) for file in (ACCURACY / "studies").glob("*.yaml")}
    rows = yaml.safe_load((ACCURACY / "expectations.yaml").read_text())["rows"]
    for row in rows:
        assert (row["to"] is None) == (row.get("against") is None), row["arm"]
        for study, dataset, budget, arm in (row[key] for key in ("of", "against") if key in row):
            assert dataset in studies[study]["datasets"], row["arm"]
            assert budget in studies[study]["budgets"], row["arm"]
            assert arm in studies[study]["arms"], row["arm"]


def test_what_was_measured_stands_out_where_it_was_not_expected(report, monkeypatch, tmp_path):
    (tmp_path / "expectations.yaml").write_text(
        """
        rows:
        - {study: 1, arm: taught, to: alone, expected: [0, 0.01], decided: "", of: [a, b, c, d], against: [a, b, c, e]}
        - {study: 1, arm: alone, to: null, expected: [null, 0.8], decided: kept, of: [a, b, c, e]}
        - {study: 1, arm: next, to: alone, expected: [0.01, null], decided: "", of: [a, b, c, f], against: [a, b, c, e]}
        """
    )
    monkeypatch.setattr(report, "HERE", tmp_path)

    def run(arm, seed, dice):
        return {"study": "a", "dataset": "b", "budget": "c", "arm": arm, "seed": seed, "dice": dice}

    runs = [run("d", 0, 0.75), run("d", 1, 0.77), run("e", 0, 0.70), run("e", 1, 0.74), run("e", 2, 0.9)]
    lines = report.expected_table(runs).splitlines()[2:]
    assert lines == [
        "| 1 | taught, against alone | 0 to +0.01 | **+0.040** | 2 |  |",
        "| 1 | alone | at most 0.8 | 0.780 | 3 | kept |",
        "| 1 | next, against alone | at least +0.01 | not run |  |  |",
    ]
