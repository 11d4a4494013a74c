"""Every problem on the machine that uses the folder is named, and nothing half-written is left."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nnunetv2_kd.inference.runtimes import is_installed
from nnunetv2_kd.runner import cases, command, network, scratch
from nnunetv2_kd.runner.errors import RunnerError
from nnunetv2_kd.runner.predictor import Predictor

pytestmark = pytest.mark.skipif(not is_installed("onnx"), reason="onnxruntime is not installed")


@pytest.fixture
def images(exported, tmp_path):
    shutil.copytree(exported / "images", tmp_path / "images")
    return tmp_path / "images"


def run(folder, *arguments):
    return command.main(folder, [str(argument) for argument in arguments])


def damage(folder: Path) -> None:
    (folder / "networks" / "model_0_fold_0.onnx").write_bytes(b"x")


def lose(folder: Path) -> None:
    (folder / "runner" / "labels.py").unlink()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (damage, "networks/model_0_fold_0.onnx was changed since the export"),
        (lose, "runner/labels.py is missing"),
        (lambda folder: (folder / "SHA256SUMS").unlink(), "lacks SHA256SUMS"),
    ],
)
def test_a_damaged_folder(copied, images, tmp_path, spoil, message, capsys):
    spoil(copied)
    assert run(copied, "-i", images, "-o", tmp_path / "found") == command.NOT_BEGUN
    assert message in capsys.readouterr().err
    assert not (tmp_path / "found").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "-i IN -o OUT"),
        (["-i", "nowhere", "-o", "found"], "nowhere does not exist"),
        (["-i", "images/box0_0000.png", "-o", "found"], "does not end with .nii.gz"),
        (["-i", ".", "-o", "found"], "holds no image named CASE_0000.nii.gz"),
        (["-i", "images", "-o", "a file"], "cannot be written to"),
        (["-i", "images", "-o", "found", "--threads", "0"], "--threads must be at least 1"),
        (["-i", "images", "-o", "found", "--memory", "-1"], "--memory must be 0 or more"),
        (["-i", "images", "-o", "found", "--scratch", "nowhere"], "--scratch nowhere is not a folder"),
    ],
)
def test_arguments(copied, images, tmp_path, monkeypatch, arguments, message, capsys):
    monkeypatch.chdir(tmp_path)
    Path("a file").touch()
    (images / "box0_0000.png").touch()
    assert run(copied, *arguments) == command.NOT_BEGUN
    assert message in capsys.readouterr().err
    assert run(copied, *arguments, "--json") == command.NOT_BEGUN
    assert message in json.loads(capsys.readouterr().out)["error"]


def test_one_file(copied, images, tmp_path):
    assert run(copied, "-i", images / "box1_0000.nii.gz", "-o", tmp_path / "found", "--quiet") == command.DONE
    assert [file.name for file in (tmp_path / "found").iterdir()] == ["box1.nii.gz"]
    shutil.copy(images / "box0_0000.nii.gz", images / "plain.nii.gz")
    assert run(copied, "-i", images / "plain.nii.gz", "-o", tmp_path / "other", "--profile") == command.DONE
    assert [file.name for file in (tmp_path / "other").iterdir()] == ["plain.nii.gz"]


def test_a_case_that_fails_is_named_and_the_others_go_on(copied, images, tmp_path, capsys):
    file = images / "box0_0000.nii.gz"
    file.write_bytes(file.read_bytes()[:-40])
    shutil.copy(images / "box1_0000.nii.gz", images / "box2_0000.nii.gz")
    shutil.copy(images / "box1_0000.nii.gz", images / "box2_0001.nii.gz")
    assert run(copied, "-i", images, "-o", tmp_path / "found", "--json") == command.SOME_FAILED
    printed = capsys.readouterr()
    assert "2 of 3 cases were not predicted" in printed.err
    message = {case["case"]: case["error"] for case in json.loads(printed.out)["cases"]}
    assert message["box1"] is None
    assert "cut short" in message["box0"]
    assert "has 2 channels, the model expects 1" in message["box2"]
    assert [file.name for file in (tmp_path / "found").iterdir()] == ["box1.nii.gz"]


def test_writing_that_fails_leaves_nothing(tmp_path):
    def full(file):
        file.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(RunnerError, match="No space left on device"):
        cases.write_atomically(tmp_path, "a.nii.gz", full)
    assert list(tmp_path.iterdir()) == []


def test_scratch_space_that_is_not_there(tmp_path, monkeypatch):
    class Usage:
        free = 10

    monkeypatch.setattr(scratch.shutil, "disk_usage", lambda _: Usage)
    with pytest.raises(RunnerError, match="scratch space are needed"):
        scratch.Stack(3, (10, 10), np.float16, 0, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_runtime_that_cannot_open_the_network(copied, monkeypatch):
    file = copied / "networks" / "model_0_fold_0.onnx"
    file.write_bytes(b"no network")
    with pytest.raises(RunnerError, match=r"onnxruntime [\d.]+ cannot open model_0_fold_0.onnx") as error:
        network.open_network(file, "onnxruntime", 1, (1, 3, 16, 16, 16))
    assert f"-r {copied / 'requirements.txt'}" in str(error.value)
    (copied / "wheels").mkdir()
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(RunnerError, match="openvino is not installed") as error:
        network.open_network(file, "openvino", 1, (1, 3, 16, 16, 16))
    assert f"--no-index --find-links {copied / 'wheels'} -r {copied / 'requirements-openvino.txt'}" in str(error.value)


def test_a_requirement_that_is_missing(copied, tmp_path):
    """With a Python that has no packages."""
    done = subprocess.run(
        [sys.executable, "-I", "-S", copied / "predict.py", "--self-test"], capture_output=True, text=True
    )
    assert done.returncode == command.NOT_BEGUN
    assert "is missing. Type: python -m pip install -r" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_test_image_with_another_result(copied, monkeypatch, capsys):
    file = copied / "self_test" / "expected.nii.gz"
    image = sitk.ReadImage(str(file))
    sitk.WriteImage(sitk.Cast(image == 0, sitk.sitkUInt8), str(file))
    monkeypatch.setattr("nnunetv2_kd.runner.model.check_files", lambda folder: None)
    assert run(copied, "--self-test", "--json") == command.SOME_FAILED
    printed = capsys.readouterr()
    assert "Self-test FAILED" in printed.err
    assert json.loads(printed.out)["passed"] is False


def test_interrupted(copied, images, tmp_path, monkeypatch, capsys):
    def interrupted(*_, **__):
        signal.raise_signal(signal.SIGTERM)
        time.sleep(1)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(Predictor, "segment", interrupted)
    try:
        assert run(copied, "-i", images, "-o", tmp_path / "found", "--json") == command.INTERRUPTED
    finally:
        signal.signal(signal.SIGTERM, before)
    printed = capsys.readouterr()
    assert "Interrupted after 0 of 2 cases" in printed.err
    assert json.loads(printed.out)["interrupted"] is True
    assert list((tmp_path / "found").iterdir()) == []
