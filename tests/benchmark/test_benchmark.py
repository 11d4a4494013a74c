import json
from unittest import mock

import pytest
import torch

from nnunetv2_kd.benchmark import run as module
from nnunetv2_kd.benchmark.timing import TimedModel
from nnunetv2_kd.cli.main import main
from nnunetv2_kd.inference.runtimes import is_installed
from nnunetv2_kd.networks.cpu_mode import cpu_has_bfloat16
from tests.untrained_models import DATASET, add_images, add_model, make_folders


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A teacher, a student and one validation case."""
    make_folders(tmp_path, monkeypatch)
    add_model(tmp_path / "results", "nnUNetTrainer")
    add_model(tmp_path / "results", "nnUNetTrainerKD", "nnUNetPlansSmall", (2, 4))
    cases = add_images(tmp_path / "raw" / DATASET / "imagesTr", 1)
    (tmp_path / "preprocessed" / DATASET).mkdir()
    splits = [{"train": [], "val": [*cases, "without_image"]}]
    (tmp_path / "preprocessed" / DATASET / "splits_final.json").write_text(json.dumps(splits))
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def in_no_time(monkeypatch):
    """Nothing runs: a model takes as many milliseconds as it has parameters."""

    def time_in_turns(models, cases, device, repeats):
        for timed in models:
            ms = float(sum(v.numel() for v in torch.load(timed.model.folds[0].checkpoint)["network_weights"].values()))
            timed.milliseconds = {True: [[3 * ms, 2 * ms] for _ in cases], False: [[ms] for _ in cases]}

    monkeypatch.setattr(module, "time_in_turns", time_in_turns)
    monkeypatch.setattr(module, "peak_in_own_process", lambda timed, files: (600.0, 500.0))


def models(here):
    """Teacher, student."""
    return [str(folder) for folder in sorted((here / "results" / DATASET).iterdir(), reverse=True)]


@pytest.mark.slow
@pytest.mark.skipif(not is_installed("openvino"), reason="openvino is not installed")
def test_runtimes_are_further_lines(here, capsys, monkeypatch):
    monkeypatch.setenv("nnUNet_kd_cache", str(here / "cache"))
    command = ["benchmark", "-m", models(here)[1], "-device", "cpu", "--repeats", "1", "--json", "found.json"]
    assert main([*command, "--runtime", "torch", "openvino"]) == 0
    out = capsys.readouterr().out
    assert "openvino f32" in out
    rows = json.loads((here / "found.json").read_text())["models"]
    assert [(row["cpu_speed"], row["runtime"], row["precision"]) for row in rows] == [
        ("float32", None, None),
        (None, "torch", "f32"),
        (None, "openvino", "f32"),
    ]
    assert all(row["ms_per_case"] > 0 and row["peak_mib"] > 50 for row in rows)


def test_real_models(here, capsys):
    """Through nnU-Net's predictor, and one process for the memory."""
    way = "bfloat16_channels_last" if cpu_has_bfloat16() else "float32_channels_last"
    command = ["benchmark", "-m", models(here)[1], "-device", "cpu", "--repeats", "1", "--json", "new/found.json"]
    assert main([*command, "--cpu_speed", way]) == 0
    out = capsys.readouterr().out
    assert "times faster: compared with nnUNetTrainerKD__nnUNetPlansSmall__3d_fullres" in out
    assert "1 thread). ms per case: from image to segmentation" in out
    assert way.replace("_", " ") in out
    found = json.loads((here / "new" / "found.json").read_text())
    assert found["cases"] == ["box0"]
    assert found["problems"] == []
    (model,) = found["models"]
    assert model["cpu_speed"] == way
    assert model["ms_per_case"] > 0
    assert model["ms_per_case_without_mirroring"] > 0
    assert model["peak_mib"] > found["process_without_model_mib"] > 50
    assert model["times_faster"] == 1


def test_of_a_dataset_the_largest_is_first(here, in_no_time, capsys):
    assert main(["benchmark", "-d", "7", "-device", "cpu", "--markdown"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("| model | parameters | GFLOPs per patch | peak MiB | ms per case | times faster |")
    assert lines[2].startswith(r"| nnUNetTrainer\_\_nnUNetPlans\_\_3d\_fullres |")
    assert "| 1.0 |" in lines[2]
    large, small = (TimedModel(module.read_model(module.Path(folder))) for folder in models(here))
    module.time_in_turns([large, small], [[]], None, 1)
    assert f"| {large.ms() / small.ms():.1f} |" in lines[3]
    assert "500 MiB of it are Python" in lines[6]


def test_only_some_of_a_dataset(here, in_no_time, capsys):
    assert main(["benchmark", "-d", "7", "-tr", "nnUNetTrainerKD", "-device", "cpu"]) == 0
    assert "nnUNetTrainer__nnUNetPlans" not in capsys.readouterr().out


def test_models_of_one_name_are_reported_apart(here, in_no_time, capsys):
    other = add_model(here / "other", "nnUNetTrainer")
    images = f"raw/{DATASET}/imagesTr"
    assert main(["benchmark", "-m", models(here)[0], str(other), "-device", "cpu", "-i", images]) == 0
    out = capsys.readouterr().out
    assert models(here)[0] in out
    assert str(other) in out


def test_a_model_that_cannot_be_timed_does_not_stop_the_others(here, capsys):
    checkpoint = here / "results" / DATASET / "nnUNetTrainer__nnUNetPlans__3d_fullres" / "fold_0/checkpoint_final.pth"
    torch.save(torch.load(checkpoint) | {"network_weights": {"w": torch.ones(1)}}, checkpoint)
    command = ["benchmark", "-device", "cpu", "--repeats", "1", "-m"]
    with mock.patch.object(module, "peak_in_own_process", side_effect=MemoryError("killed")):
        assert main([*command, *models(here)]) == 0
    out = capsys.readouterr().out
    assert "Missing: nnUNetTrainer__nnUNetPlans__3d_fullres: not timed: The weights in" in out
    assert "peak memory not known: MemoryError: killed" in out
    assert (
        "times faster: compared with nnUNetTrainerKD__nnUNetPlansSmall__3d_fullres, the first line with a time" in out
    )
    assert main([*command, models(here)[0]]) == 1
    assert "No model could be timed" in capsys.readouterr().err
    torch.save(torch.load(checkpoint) | {"network_weights": {}}, checkpoint)
    assert main([*command, models(here)[0]]) == 1
    assert "has no trained fold that can be read:\n  - " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], "Name the models either with -m"),
        (["-d", "7", "-m", "results"], "Name the models either with -m"),
        (["-m", "results"], "results is not a model folder. Expected: TRAINER__PLANS__CONFIGURATION with plans.json"),
        (["-m", "a__b__c"], "a__b__c is not a model: plans.json cannot be read"),
        (["-m", "MODEL", "-c", "2d"], "-m already names the models; -c select models of -d DATASET"),
        (["-m", "MODEL", "-f", "2"], "has no trained fold 2 (no checkpoint_final.pth). Trained folds: -f 0"),
        (["-m", "MODEL", "-i", "nowhere"], "-i nowhere is not a folder"),
        (["-m", "MODEL", "-i", "raw"], "-i raw holds no image named CASE_0000.nii.gz"),
        (["-m", "MODEL", "--cases", "0"], "--cases must be at least 1, found 0"),
        (["-m", "MODEL", "--cpu_speed", "bfloat16"], "bfloat16 needs a processor with bfloat16 instructions"),
        (
            ["-m", "MODEL", "-device", "mps", "--cpu_speed", "measure"],
            "--cpu_speed is for -device cpu, found -device mps",
        ),
        (["-m", "MODEL", "--runtime", "onnx", "--precision", "int8"], "--runtime onnx has no --precision int8"),
        (["-m", "MODEL", "--precision", "bf16"], "--precision bf16 only applies to --runtime. Add: --runtime openvino"),
        (["-m", "MODEL", "--runtime", "torch", "--precision", "bf16"], "bfloat16 needs a processor with bfloat16"),
        (["-m", "MODEL", "-device", "cuda"], "This machine has no device cuda. Add: -device cpu"),
        (["-m", "MODEL", "--json", "/dev/null/x/y.json"], "--json /dev/null/x cannot be written to"),
        (["-d", "7", "-p", "nnUNetOther"], "has the -p and -tr asked for. Trained:\n  - nnUNetTrainerKD__"),
        (["-d", "8"], "There is no dataset 8"),
    ],
)
def test_refuses(here, in_no_time, capsys, monkeypatch, flags, expected):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: True)
    monkeypatch.setattr("nnunetv2_kd.networks.cpu_mode.cpu_has_bfloat16", lambda: False)
    flags = [models(here)[0] if flag == "MODEL" else flag for flag in flags]
    assert main(["benchmark", "-device", "cpu", *flags]) == 1
    assert expected in capsys.readouterr().err


def test_without_the_validation_cases(here, in_no_time, capsys):
    for file in (here / "raw" / DATASET / "imagesTr").iterdir():
        file.unlink()
    assert main(["benchmark", "-d", "7", "-device", "cpu"]) == 1
    assert "No image of the validation cases of fold 0" in capsys.readouterr().err
    (here / "preprocessed" / DATASET / "splits_final.json").unlink()
    assert main(["benchmark", "-d", "7", "-device", "cpu"]) == 1
    assert "there is no splits_final.json with this fold under nnUNet_preprocessed" in capsys.readouterr().err


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_on_cuda(here):
    assert main(["benchmark", "-d", "7", "--repeats", "1", "--json", "found.json"]) == 0
    found = json.loads((here / "found.json").read_text())
    assert all(model["peak_mib"] > 0 for model in found["models"])
