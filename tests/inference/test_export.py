"""Exports, and what stock nnU-Net predicts with them."""

import io
import json
import re
import shutil
import subprocess
import zipfile

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from nnunetv2_kd.cli.main import main
from nnunetv2_kd.inference import export
from nnunetv2_kd.inference.export import as_float16
from nnunetv2_kd.inference.model_card import without_origin
from nnunetv2_kd.inference.runtimes import is_installed
from nnunetv2_kd.networks.cpu_mode import cpu_has_bfloat16
from tests.inference.models import KINDS, make_images, make_model, make_previous
from tests.room_on_disk import fill, small_disk
from tests.untrained_models import DATASET

ALONE = ["-device", "cpu", "-npp", "0", "-nps", "0", "--disable_progress_bar"]
needs_openvino = pytest.mark.skipif(not is_installed("openvino"), reason="openvino is not installed")
SECRET = "/home/somebody/patient_anna"
RUNS = [
    pytest.param("openvino", "f32", "residual", marks=needs_openvino),
    *(
        pytest.param("openvino", "f32", kind, marks=[needs_openvino, pytest.mark.slow])
        for kind in ("2d", "regions", "cascade")
    ),
    pytest.param("openvino", "fp16", "plain", marks=[needs_openvino, pytest.mark.slow]),
    pytest.param(
        "openvino",
        "bf16",
        "plain",
        marks=[needs_openvino, pytest.mark.skipif(not cpu_has_bfloat16(), reason="no bfloat16 instructions here")],
    ),
    pytest.param(
        "onnx",
        "f32",
        "plain",
        marks=pytest.mark.skipif(not is_installed("onnx"), reason="onnxruntime is not installed"),
    ),
]


def segmentations(folder):
    return np.stack([sitk.GetArrayFromImage(sitk.ReadImage(str(f))) for f in sorted(folder.glob("*.nii.gz"))])


def command(model, output, *more):
    configuration = model.name.split("__")[-1]
    return ["export", "-d", "7", "-c", configuration, "-o", output, "-i", "images", "-gt", "labels", *more]


@pytest.mark.parametrize(("format_", "precision", "kind"), RUNS)
def test_an_export_predicts_what_the_model_predicts(here, format_, precision, kind, capsys):
    model = make_model(here / "results", folds=(0, 1), **KINDS[kind])
    cases = make_images(here / "images", labels=here / "labels")
    previous = ["-prev_stage_predictions", "previous"] if kind == "cascade" else []
    if previous:
        make_previous(here / "previous", cases)
    flags = ["--format", format_, "--precision", precision, "-f", "0", "1", "--tolerance", "300", *previous]
    assert main(command(model, "out", *flags)) == 0
    assert "voxels differ from PyTorch" in capsys.readouterr().out
    about = json.loads((here / "out" / "export.json").read_text())
    proof = about["proof"]
    assert proof["cases"] == 2
    assert proof["voxels"] == 2 * 21 * 18 * 19
    assert proof["per_100000"] <= (30 if precision == "f32" else 3000)
    assert set(proof["dice"]) == set(proof["nsd"]) == {"pytorch", "export"}
    assert all(0 <= value <= 1 for value in proof["dice"]["export"].values())
    arguments = ["-i", "images", *ALONE[:2], "--disable_progress_bar", *previous]
    assert main(["predict", "-m", "out", "-o", "of export", *arguments]) == 0
    configuration = model.name.split("__")[-1]
    reference = ["-d", "7", "-c", configuration, "-f", "0", "1", "-i", "images", "-o", "stock", *ALONE, *previous]
    assert main(["predict", "--runtime", "torch", *reference]) == 0
    expected, found = segmentations(here / "stock"), segmentations(here / "of export")
    assert (expected != found).sum() <= (3 if precision == "f32" else 0.05 * expected.size)
    card = json.loads((here / "out" / "model_card.json").read_text())
    assert card["model"]["parameters"] > 0
    assert set(card["quality"]["dice"]) == set(proof["dice"]["export"])
    assert "## Quality" in (here / "out" / "MODEL_CARD.md").read_text()


def test_no_names_of_cases_and_no_paths(here):
    model = make_model(here / "results")
    make_images(here / "images", labels=here / "labels")
    file = model / "fold_0" / "checkpoint_final.pth"
    checkpoint = torch.load(file, weights_only=False)
    checkpoint["kd"] = {"command": f"train {SECRET}", "teachers": [{"folder": SECRET, "sha256": "ab" * 32}]}
    checkpoint["logging"] = {"cases": ["patient_anna"]}
    checkpoint["init_args"]["plans"]["kd"] = {"teacher": {"folder": SECRET}}
    torch.save(checkpoint, file)
    for name, more in (
        ("plans.json", {"kd": {"teacher": {"folder": SECRET}}}),
        ("dataset.json", {"training": [SECRET]}),
    ):
        content = json.loads((model / name).read_text()) | more
        (model / name).write_text(json.dumps(content))
    (model / "fold_0" / "training_log.txt").write_text(SECRET)
    formats = ["nnunet"] + (["openvino"] if is_installed("openvino") else [])
    for format_ in formats:
        assert main(command(model, format_, "--format", format_, "--tolerance", "300")) == 0
        files = [f for f in (here / format_).rglob("*") if f.is_file()]
        for content in [f.read_bytes() for f in files]:
            assert b"anna" not in content
            assert str(here).encode() not in content
            assert b"box0" not in content
        assert "ab" * 32 in (here / format_ / "MODEL_CARD.md").read_text()
    archive = zipfile.ZipFile(here / "nnunet" / f"{DATASET}.zip")
    assert sorted(archive.namelist()) == sorted(
        f"{DATASET}/{model.name}/{name}" for name in ("plans.json", "dataset.json", "fold_0/checkpoint_final.pth")
    )
    kept = torch.load(here / "nnunet" / DATASET / model.name / "fold_0" / "checkpoint_final.pth", weights_only=True)
    assert "optimizer_state" not in kept


def test_paths_in_plain_values():
    assert without_origin({"a": "/tmp/x", "b": ["C:\\x", "ok"], "folder": "x", "c": {"d": "~/x", "e": 1}}) == {
        "b": ["ok"],
        "c": {"e": 1},
    }


def test_half_precision_halves_the_size():
    """Names that share a tensor, as nnU-Net's networks have them, still do."""
    conv = torch.randn(64, 8, 3, 3, 3)
    weights = {"conv.weight": conv, "all_modules.0.weight": conv, "bias": torch.randn(64), "count": torch.tensor(3)}
    sizes = []
    for saved in (weights, as_float16(weights)):
        file = io.BytesIO()
        torch.save(saved, file)
        sizes.append(file.tell())
    assert sizes[1] < 0.55 * sizes[0]
    halved = as_float16(weights)
    assert halved["conv.weight"] is halved["all_modules.0.weight"]
    torch.testing.assert_close(halved["bias"], weights["bias"].half(), rtol=0, atol=0)
    assert halved["count"] is weights["count"]


@pytest.mark.commands
@pytest.mark.parametrize("precision", [pytest.param("f32", marks=pytest.mark.slow), "fp16"])
def test_stock_nnunet_takes_the_zip(here, stock_python, precision, monkeypatch):
    """In an environment without this package."""
    model = make_model(here / "results")
    make_images(here / "images", labels=here / "labels")
    assert main(command(model, "out", "--format", "nnunet", "--precision", precision, "--tolerance", "300")) == 0
    arguments = ["-i", "images", "-d", "7", "-c", "3d_fullres", "-f", "0", *ALONE]
    assert main(["predict", "--runtime", "torch", *arguments, "-o", "here"]) == 0
    (here / "elsewhere").mkdir()
    monkeypatch.setenv("nnUNet_results", str(here / "elsewhere"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    run = "import sys; sys.argv[0] = 'x'; from nnunetv2.{} import {} as run; run()"
    for where, entry, given in (
        ("model_sharing.entry_points", "install_from_zip_entry_point", [f"out/{DATASET}.zip"]),
        ("inference.predict_from_raw_data", "predict_entry_point", [*arguments, "-o", "there"]),
    ):
        done = subprocess.run(
            [stock_python, "-c", run.format(where, entry), *given], cwd=here, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    differing = (segmentations(here / "here") != segmentations(here / "there")).mean()
    assert differing <= (0 if precision == "f32" else 0.01)


@needs_openvino
def test_an_export_that_differs_is_refused(here, monkeypatch, capsys):
    model = make_model(here / "results")
    make_images(here / "images", labels=here / "labels")
    from nnunetv2_kd.inference import exported

    real = exported.open_session

    def wrong(*args):
        session = real(*args)
        return lambda data: session(data)[:, ::-1].copy()

    monkeypatch.setattr(exported, "open_session", wrong)
    assert main(command(model, "out")) == 1
    error = capsys.readouterr().err
    assert "The export does not predict the same as the model" in error
    allowed = re.search(r"--tolerance (\S+)", error)[1]
    assert float(allowed) > 1000
    assert sorted(f.name for f in here.iterdir() if "out" in f.name) == []


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["-f", "3"], "fold_3/checkpoint_final.pth does not exist"),
        (["--format", "onnx", "--precision", "int8"], "--format onnx has no --precision int8, only f32"),
        (["--tolerance", "-1"], "--tolerance must be 0 or more, found -1"),
        (["--cases", "0"], "--cases must be at least 1, found 0"),
        (["-o", "full"], "is not empty and was left alone"),
        (["-o", "full/file"], "is a file. Choose another name"),
        (["-o", "full/file/out"], "cannot be written to"),
        (["-i", "nowhere"], "-i nowhere is not a folder"),
        (["-gt", "nowhere"], "-gt nowhere is not a folder"),
        (["-c", "2d"], "is not a model folder"),
        (["-m", "results"], "either with -d DATASET (and -c, -p, -tr) or with -m FOLDER"),
    ],
)
def test_refuses(here, capsys, flags, expected):
    model = make_model(here / "results")
    make_images(here / "images", 1, labels=here / "labels")
    (here / "full").mkdir()
    (here / "full" / "file").write_text("")
    before = sorted(here.rglob("*"))
    assert main(command(model, "out", "--format", "nnunet", *flags)) == 1
    assert expected in capsys.readouterr().err
    assert sorted(here.rglob("*")) == before


def test_images_that_cannot_be_compared_on(here, capsys):
    """The case is named, and no folder is left."""
    model = make_model(here / "results")
    cases = make_images(here / "images", 1)
    file = here / "images" / f"{cases[0]}_0000.nii.gz"
    shutil.copyfile(file, here / "images" / f"{cases[0]}_0001.nii.gz")
    assert main([*command(model, "out")[:-2], "--format", "nnunet"]) == 1
    (here / "images" / f"{cases[0]}_0001.nii.gz").unlink()
    assert "box0: has 2 channels, the model expects 1" in capsys.readouterr().err
    file.write_bytes(b"no image")
    assert main([*command(model, "out")[:-2], "--format", "nnunet"]) == 1
    assert "box0_0000.nii.gz cannot be read: " in capsys.readouterr().err
    (here / "empty").mkdir()
    assert main([*command(model, "out")[:-4], "-i", "empty", "--format", "nnunet"]) == 1
    assert "-i empty holds no image named CASE_0000.nii.gz" in capsys.readouterr().err
    assert not [f.name for f in here.iterdir() if "out" in f.name]


def test_models_that_cannot_be_exported(here, capsys, monkeypatch):
    """An unfinished training, a truncated file, weights of another model, no runtime, no converter."""
    model = make_model(here / "results")
    other = make_model(here / "elsewhere", dims=2)
    make_images(here / "images", 1, labels=here / "labels")
    checkpoint = model / "fold_0" / "checkpoint_final.pth"
    whole = checkpoint.read_bytes()

    def refused(expected, *flags):
        assert main(command(model, "out", *flags)) == 1
        assert expected in capsys.readouterr().err
        assert not [f.name for f in here.iterdir() if "out" in f.name]

    checkpoint.write_bytes(whole[:5000])
    refused("it is truncated, empty, or not a checkpoint", "--format", "nnunet")
    shutil.copyfile(other / "fold_0" / "checkpoint_final.pth", checkpoint)
    refused("must be from the same training", "--format", "nnunet")
    checkpoint.rename(checkpoint.with_name("checkpoint_latest.pth"))
    refused("its training is not finished", "--format", "nnunet")
    checkpoint.write_bytes(whole)
    if is_installed("onnx"):
        with monkeypatch.context() as patched:
            patched.setattr("torch.onnx.export", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("aten::strange")))
            refused("cannot be converted to ONNX: RuntimeError: aten::strange", "--format", "onnx")
    monkeypatch.setattr("nnunetv2_kd.inference.runtimes.package_version", lambda name: None)
    for runtime in ("onnx", "openvino"):
        refused(f"--runtime {runtime} is not installed. Type: pip install", "--format", runtime)


@needs_openvino
@pytest.mark.parametrize("damage", ["cut", "gone", "swapped"])
def test_a_damaged_export_is_refused(here, capsys, damage):
    model = make_model(here / "results", folds=(0, 1))
    make_images(here / "images", 1, labels=here / "labels")
    assert main(command(model, "out", "-f", "0", "1", "--tolerance", "300")) == 0
    file = here / "out" / "fold_0" / "model.bin"
    if damage == "gone":
        file.unlink()
    else:
        content = file.read_bytes()[:-9] if damage == "cut" else (here / "out/fold_1/model.bin").read_bytes()
        file.write_bytes(content)
    assert main(["predict", "-m", "out", "-i", "images", "-o", "predictions", "-device", "cpu"]) == 1
    error = capsys.readouterr().err
    assert "out is damaged. Copy it again, or export it again:" in error
    assert ("fold_0/model.bin is missing" if damage == "gone" else "SHA-256 differs") in error


@needs_openvino
def test_folds_and_device_of_an_export(here, capsys):
    model = make_model(here / "results")
    make_images(here / "images", 1, labels=here / "labels")
    assert main(command(model, "out", "--tolerance", "300")) == 0
    arguments = ["predict", "-m", "out", "-i", "images", "-o", "predictions"]
    assert main([*arguments, "-device", "cpu", "-f", "4"]) == 1
    assert "out has no fold 4. Its folds: -f 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags",
    [
        ("--format", "nnunet"),
        pytest.param(
            ("--format", "onnx"),
            marks=pytest.mark.skipif(not is_installed("onnx"), reason="onnxruntime is not installed"),
        ),
        pytest.param(("--format", "openvino"), marks=needs_openvino),
    ],
    ids=lambda flags: flags[1],
)
@pytest.mark.parametrize("room", [0, 24_000])
def test_a_disk_that_is_full_gets_no_half_export(here, capsys, flags, room):
    """No byte, or a few for the small files."""
    make_model(here / "results")
    make_images(here / "images", labels=here / "labels")
    with small_disk(here / "small", 8) as small:
        filling = fill(small, room)
        assert (
            main(command(here / "results" / DATASET / "nnUNetTrainer__nnUNetPlans__3d_fullres", "small/out", *flags))
            == 1
        )
        told = capsys.readouterr().err
        assert "the disk or the quota is full" in told or "-o small cannot be written to" in told
        assert [file.name for file in small.iterdir()] == ["filling"]
        filling.unlink()


def test_a_checkpoint_that_a_training_replaces_meanwhile_is_not_exported(here, capsys, monkeypatch):
    model = make_model(here / "results")
    other = make_model(here / "other", folds=(1,))
    make_images(here / "images", labels=here / "labels")
    plain = export._reference

    def replaced(request):
        found = plain(request)
        (other / "fold_1" / "checkpoint_final.pth").replace(model / "fold_0" / "checkpoint_final.pth")
        return found

    monkeypatch.setattr(export, "_reference", replaced)
    assert main(command(model, "out", "--format", "nnunet")) == 1
    assert "has changed while it was exported" in capsys.readouterr().err
    assert not list(here.glob("*out*"))
