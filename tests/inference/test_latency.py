"""Students sized by measured time."""

import json

import pytest

from nnunetv2_kd.cli.main import main
from nnunetv2_kd.config import StudentOptions, parse_features, parse_latency
from nnunetv2_kd.errors import KDError
from nnunetv2_kd.inference import latency
from nnunetv2_kd.students.shapes import candidates
from nnunetv2_kd.students.size import student_plans
from tests.small_networks import DATASET_JSON
from tests.untrained_models import DATASET, make_folders, predicting_plans


def teacher_plans(features=(16, 32)):
    made = predicting_plans("nnUNetPlans", features)
    made["dataset_name"] = DATASET
    del made["configurations"]["3d_fullres_bs4"], made["configurations"]["2d"]
    return made


@pytest.fixture
def here(tmp_path, monkeypatch):
    make_folders(tmp_path, monkeypatch)
    folder = tmp_path / "preprocessed" / DATASET
    folder.mkdir()
    (folder / "nnUNetPlans.json").write_text(json.dumps(teacher_plans()))
    (folder / "dataset.json").write_text(json.dumps(DATASET_JSON))
    monkeypatch.chdir(tmp_path)
    return folder


def features(plans):
    return plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["features_per_stage"]


def test_candidates():
    shapes = candidates(teacher_plans((32, 64)), "3d_fullres", DATASET_JSON)
    assert shapes[0].features == (32, 64)
    assert shapes[0].convs_per_stage is None
    flops = [shape.cost.flops for shape in shapes[1:]]
    assert flops == sorted(flops, reverse=True)
    assert len({(shape.features, shape.convs_per_stage) for shape in shapes}) == len(shapes)
    found = {shape.features for shape in shapes}
    assert {(16, 32), (16, 24), (8, 16), (24, 48)} <= found
    assert all(a <= b for shape in found for a, b in zip(shape, (32, 64), strict=True))


@pytest.mark.parametrize("runtime", ["torch"])
def test_the_most_capacity_within_the_budget(here, monkeypatch, capsys, runtime):
    """In this test, a case takes as many milliseconds as the square of the network's channels at full resolution."""
    monkeypatch.setattr(latency, "_case", lambda predictor, *_: predictor.network.encoder.output_channels[0] ** 2 * 1.0)
    monkeypatch.setattr(latency, "time_in_turns", lambda runs, rounds: {"patch": 0.0})
    monkeypatch.setattr(latency, "_without_network", lambda *_: (8, 5.0))
    command = [
        "plan",
        "-d",
        "7",
        "-c",
        "3d_fullres",
        "--runtime",
        runtime,
        "--latency",
        "100ms",
        "--plot",
        "shapes.png",
    ]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "→" in out
    student = json.loads((here / "nnUNetPlansStudent.json").read_text())
    assert features(student) == [8, 16]
    record = student["kd_student"]
    assert record["latency"]["asked"] == "100ms"
    assert record["latency"]["measured_ms"] == 64.0
    assert record["width"] == {"3d_fullres": 0.5}
    assert (here.parents[1] / "shapes.png").read_bytes()[:4] == b"\x89PNG"
    # what was measured counts from then on, also where the option is given again
    made, made_here = student_plans(student, "3d_fullres", DATASET_JSON, StudentOptions(latency="0.1s"))
    assert made == student
    assert not made_here


def test_a_real_measurement(here, capsys):
    assert main(["plan", "-d", "7", "-c", "3d_fullres", "--runtime", "torch", "--latency", "60s"]) == 0
    out = capsys.readouterr().out
    assert "ms per case" in out
    student = json.loads((here / "nnUNetPlansStudent.json").read_text())
    assert features(student) == [16, 24]  # most FLOPs below the teacher's
    assert 0 < student["kd_student"]["latency"]["measured_ms"] < 60000


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--latency", "1ms"], "No student of 3d_fullres predicts a case in 1 ms on this machine: the fastest"),
        (["--latency", "0ms"], "expected a time between 1ms and 3600s"),
        (["--latency=-5ms"], "expected a time"),
        (["--latency", "9" * 400], "expected a time"),
        (["--latency", "soon"], "expected a time"),
        (["--latency", "5h"], "expected a time"),
        (["--latency", "1s", "--width", "0.5"], "give one of width, params, flops, features and latency"),
        (["--latency", "1s", "--convs-per-stage", "1"], "Leave out --convs-per-stage"),
        (["--latency", "1s", "--precision", "int8"], "has no --precision int8"),
        (["--features", "8,16,32"], "3 numbers of channels (8, 16, 32) for a network of 2 stages"),
        (["--features", "8,zero"], "expected channels per stage"),
        (["--features", "8,0"], "expected channels per stage"),
    ],
)
def test_refuses(here, capsys, flags, expected):
    flags = flags if "--features" in flags else ["--runtime", "torch", *flags]
    assert main(["plan", "-d", "7", "-c", "3d_fullres", *flags]) == 1
    assert expected in capsys.readouterr().err
    assert not (here / "nnUNetPlansStudent.json").exists()


def test_channels_by_hand(here):
    assert main(["plan", "-d", "7", "-c", "3d_fullres", "--features", "8,24", "--convs-per-stage", "1"]) == 0
    student = json.loads((here / "nnUNetPlansStudent.json").read_text())
    kwargs = student["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    assert kwargs["features_per_stage"] == [8, 24]
    assert kwargs["n_conv_per_stage"] == [1, 1]
    assert student["kd_student"]["features"] == {"3d_fullres": [8, 24]}


def test_by_a_trainer():
    made, made_here = student_plans(teacher_plans(), "3d_fullres", DATASET_JSON, StudentOptions(features=[4, 8]))
    assert made_here
    assert features(made) == [4, 8]
    with pytest.raises(
        KDError, match=r"nnUNetv2_kd plan -d Dataset007_Boxes -c 3d_fullres -p nnUNetPlans --latency 300ms"
    ):
        student_plans(teacher_plans(), "3d_fullres", DATASET_JSON, StudentOptions(latency="300ms"))


def test_parsed():
    assert parse_latency("1.5s") == 1500
    for given, kept in (("3600s", "3600000ms"), ("1234.5678s", "1234567.8ms"), (300, "300ms"), ("1ms", "1ms")):
        assert StudentOptions(latency=given).latency == kept
        assert parse_latency(kept) == parse_latency(given)
    assert parse_latency(300) == 300
    assert parse_features([8, 16]) == parse_features("8, 16") == [8, 16]
    assert StudentOptions(features=[8, 16]).features == "8,16"
