"""The portable folder, made by the command and run as its users run it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from nnunetv2_kd.cli.main import main
from nnunetv2_kd.inference.runtimes import is_installed
from nnunetv2_kd.portable import requirements, wheels
from nnunetv2_kd.runner import command
from tests.inference.models import KINDS, make_images, make_model, make_previous
from tests.untrained_models import DATASET

pytestmark = pytest.mark.skipif(not is_installed("onnx"), reason="onnxruntime is not installed")
ALONE = ["-device", "cpu", "-npp", "0", "-nps", "0", "--disable_progress_bar"]


def segmentations(folder: Path) -> np.ndarray:
    return np.stack([sitk.GetArrayFromImage(sitk.ReadImage(str(f))) for f in sorted(folder.glob("*.nii.gz"))])


@pytest.mark.parametrize(
    "kind",
    ["plain", "cascade", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("2d", "regions", "two channels"))],
)
def test_it_predicts_what_nnunet_predicts(here, kind, capsys):
    model = make_model(here / "results", folds=(0, 1), resampled=True, **KINDS[kind])
    cases = make_images(here / "images", channels=2 if kind == "two channels" else 1)
    previous = []
    if kind == "cascade":
        make_previous(here / "previous", cases)
        previous = ["previous"]
    configuration = model.name.split("__")[-1]
    flags = ["-c", configuration, "-f", "0", "1", "--format", "portable", "--tolerance", "50"]
    stage = [part for name in previous for part in ("-prev_stage_predictions", name)]
    assert main(["export", "-d", "7", *flags, "-o", "out", "-i", "images", *stage]) == 0
    printed = capsys.readouterr().out
    assert "voxels differ from PyTorch" in printed
    assert "Self-test passed: " in printed
    arguments = ["-i", "images", "-o", "found", *(part for name in previous for part in ("--previous", name))]
    assert command.main(here / "out", arguments) == command.DONE
    reference = ["-d", "7", "-c", configuration, "-f", "0", "1", "-i", "images", "-o", "stock", *ALONE, *stage]
    assert main(["predict", "--runtime", "onnx", *reference]) == 0
    expected, found = segmentations(here / "stock"), segmentations(here / "found")
    assert (expected != found).sum() == 0
    assert command.main(here / "out", ["--self-test"]) == command.DONE


def test_several_models(here):
    for settings in ({}, {"dims": 2}):
        make_model(here / "results", **settings)
    make_images(here / "images")
    flags = ["-c", "3d_fullres", "2d", "--format", "portable", "--tolerance", "100"]
    assert main(["export", "-d", "7", *flags, "-o", "out", "-i", "images"]) == 0
    message = json.loads((here / "out" / "model.json").read_text())
    assert [part["name"] for part in message["configurations"]] == ["3d_fullres", "2d"]
    assert command.main(here / "out", ["-i", "images", "-o", "found"]) == command.DONE


def test_a_program_of_its_own(exported, tmp_path):
    """Neither torch nor nnU-Net nor this package is imported."""
    for name in ("torch", "nnunetv2", "nnunetv2_kd", "skimage", "pandas", "batchgenerators", "acvl_utils"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('is not there')")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    line = [sys.executable, exported / "out" / "predict.py", "-i", exported / "images", "-o", tmp_path / "found"]
    done = subprocess.run([*line, "--json"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    message = json.loads(done.stdout)
    assert [case["case"] for case in message["cases"]] == ["box0", "box1"]
    assert all(Path(case["output"]).is_file() and case["error"] is None for case in message["cases"])
    assert {"reading", "preprocessing", "network", "labels", "writing"} == set(message["cases"][0]["seconds"])
    assert not list((exported / "out").rglob("__pycache__"))


def test_what_is_in_it(exported):
    files = {file.relative_to(exported / "out").as_posix() for file in (exported / "out").rglob("*") if file.is_file()}
    assert files >= {
        "predict.py",
        "runner/command.py",
        "model.json",
        "networks/model_0_fold_0.onnx",
        "requirements.txt",
        "MODEL_CARD.md",
        "model_card.json",
        "export.json",
        "LICENSE",
        "SHA256SUMS",
        "Dockerfile",
        "self_test/image_0000.nii.gz",
        "self_test/expected.nii.gz",
    }
    assert not [name for name in files if name.endswith((".pth", ".pkl", ".pickle", ".npz"))]
    done = subprocess.run(["sha256sum", "--quiet", "-c", "SHA256SUMS"], cwd=exported / "out", capture_output=True)
    assert done.returncode == 0
    text = b"".join((exported / "out" / name).read_bytes() for name in files)
    assert str(exported).encode() not in text
    assert b"box0" not in text
    assert "torch" not in (exported / "out" / "requirements.txt").read_text()


def test_files_of_other_people(here, capsys):
    """A trainer that is not installed, in a zip; more than plain data only if it is trusted."""
    model = make_model(here / "results", trainer="nnUNetTrainerOfSomebody")
    file = model / "fold_0" / "checkpoint_final.pth"
    checkpoint = torch.load(file, weights_only=False) | {"trainer_name": "nnUNetTrainerOfSomebody"}
    torch.save(checkpoint, file)
    shutil.make_archive(str(here / "model"), "zip", here / "results", DATASET)
    flags = ["--format", "portable"]
    assert main(["export", "-m", "model.zip", "-o", "of zip", *flags]) == 0
    assert "The trainer nnUNetTrainerOfSomebody is not installed" in capsys.readouterr().out
    assert main(["export", "-m", "model.zip", "-f", "3", "-o", "lacks", *flags]) == 1
    error = capsys.readouterr().err
    assert "with -f FOLD and -chk CHECKPOINT" in error
    assert "teacher" not in error
    torch.save(checkpoint | {"logging": Path("somewhere")}, file)
    assert main(["export", "-m", str(model), "-o", "refused", *flags]) == 1
    error = capsys.readouterr().err
    assert "carries more than plain data" in error
    assert "--trust for a command of nnUNetv2_kd" in error
    assert not (here / "refused").exists()
    assert main(["export", "-m", str(model), "-o", "trusted", "--trust", *flags]) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"resampling_fn_data": "resample_torch_fornnunet"}, "resampling_fn_data: resample_torch_fornnunet"),
        ({"preprocessor_name": "MyPreprocessor"}, "MyPreprocessor"),
    ],
)
def test_what_the_runner_does_not_know(here, change, message, capsys):
    model = make_model(here / "results")
    plans = json.loads((model / "plans.json").read_text())
    plans["configurations"]["3d_fullres"] |= change
    (model / "plans.json").write_text(json.dumps(plans))
    assert main(["export", "-d", "7", "-o", "out", "--format", "portable"]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert not (here / "out").exists()


def test_postprocessing_that_nnunet_determined(here):
    model = make_model(here / "results")
    make_images(here / "images")
    folder = model / "crossval_results_folds_0"
    folder.mkdir()
    name = "remove_all_but_largest_component_from_segmentation"
    message = {"postprocessing_fns": [name] * 2, "postprocessing_kwargs": [{"labels_or_regions": i} for i in (1, 2)]}
    (folder / "postprocessing.json").write_text(json.dumps(message))
    assert main(["export", "-d", "7", "-o", "out", "--format", "portable"]) == 0
    for output, flags in (("with", []), ("without", ["--no-postprocessing"])):
        assert command.main(here / "out", ["-i", "images", "-o", output, *flags]) == command.DONE
    assert (segmentations(here / "with") != segmentations(here / "without")).any()


@pytest.mark.skipif(not is_installed("openvino"), reason="openvino is not installed")
def test_openvino(here):
    make_model(here / "results")
    make_images(here / "images")
    assert main(["export", "-d", "7", "-o", "out", "--format", "portable", "--openvino"]) == 0
    assert (here / "out" / "networks" / "model_0_fold_0.xml").is_file()
    assert command.main(here / "out", ["-i", "images", "-o", "onnx"]) == command.DONE
    assert command.main(here / "out", ["-i", "images", "-o", "openvino", "--runtime", "openvino"]) == command.DONE
    assert (segmentations(here / "onnx") != segmentations(here / "openvino")).mean() < 1e-3


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["-f", "0", "--format", "onnx", "--wheels", "linux_x86_64", "3.12"], "--wheels is for --format portable"),
        (["--format", "portable", "--wheels", "amiga", "3.12"], "--wheels knows the platforms linux_x86_64"),
        (["--format", "portable", "--wheels", "win_amd64", "2.7"], "Python 3.10 to 3.13, found 2.7"),
        (["--format", "portable", "--precision", "int8"], "has no --precision int8"),
        (["--format", "onnx", "-c", "2d", "3d_fullres"], "exports one model, found 2"),
        (["--format", "portable", "--codes", "codes.json"], "liver is not a label"),
    ],
)
def test_flags_that_do_not_fit(here, flags, message, capsys):
    make_model(here / "results")
    (here / "codes.json").write_text(json.dumps({"liver": ["10200004", "SCT", "Liver"]}))
    assert main(["export", "-d", "7", "-o", "out", *flags]) == 1
    assert message in capsys.readouterr().err
    assert not (here / "out").exists()


def test_requirements_are_a_closed_part_of_the_lock():
    lock = requirements.read_lock()
    assert {entry.name for entry in lock} >= {"numpy", "scipy", "onnxruntime", "simpleitk", "highdicom", "openvino"}
    assert all("--hash=sha256:" in entry.text for entry in lock)
    found = requirements.needed_packages(["numpy", "scipy", "onnxruntime", "SimpleITK"])
    names = {entry.name for entry in found}
    assert {"protobuf", "flatbuffers", "simpleitk"} <= names
    assert not names & {"openvino", "nibabel", "torch"}


def test_wheels_of_another_machine(tmp_path, monkeypatch):
    """Markers are evaluated for that machine, which pip itself does not do."""
    asked = []

    def pip(line, **_):
        asked.append((line, Path(line[-1]).read_text()))
        return subprocess.CompletedProcess(line, 0, "", "")

    monkeypatch.setattr(wheels.subprocess, "run", pip)
    pinned = requirements.needed_packages(["numpy", "onnxruntime", "tqdm"])
    for platform, python in (("win_amd64", "3.10"), ("linux_x86_64", "3.12")):
        wheels.download_wheels(tmp_path, pinned, platform, python)
    (windows, for_windows), (linux, for_linux) = asked
    assert "win_amd64" in windows
    assert "manylinux_2_28_x86_64" in linux
    assert "colorama" in for_windows
    assert "colorama" not in for_linux
    assert for_windows.count("numpy==") == for_linux.count("numpy==") == 1
    assert ";" not in for_windows + for_linux


def test_wheels_that_cannot_be_had(tmp_path, monkeypatch):
    from nnunetv2_kd.errors import KDError

    failed = subprocess.CompletedProcess([], 1, "", "ERROR: No matching distribution found for tqdm")
    monkeypatch.setattr(wheels.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(KDError, match="No matching distribution"):
        wheels.download_wheels(tmp_path, requirements.needed_packages(["tqdm"]), "win_amd64", "3.12")
