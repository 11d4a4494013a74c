import shutil
import sys

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.inference import predict_from_raw_data
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from nnunetv2_kd.cli.main import main
from nnunetv2_kd.errors import KDError
from nnunetv2_kd.inference.predict import check_model, image_problems
from nnunetv2_kd.networks.cpu_mode import cpu_has_bfloat16
from tests.untrained_models import DATASET, add_images, add_model, make_folders

MODEL = ["-d", "7", "-c", "3d_fullres", "-f", "0"]
ALONE = ["-device", "cpu", "-npp", "0", "-nps", "0", "--disable_progress_bar"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A model, two images, and nnU-Net's folders."""
    make_folders(tmp_path, monkeypatch)
    monkeypatch.setenv("nnUNet_kd_cache", str(tmp_path / "cache"))
    add_model(tmp_path / "results", "nnUNetTrainer")
    add_images(tmp_path / "my images", 1)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def segmentations(folder):
    return np.stack([sitk.GetArrayFromImage(sitk.ReadImage(str(f))) for f in sorted(folder.glob("*.nii.gz"))])


def test_the_files_of_nnunetv2_predict(here, monkeypatch, capsys):
    command = ["-i", "my images", "-o", "stock", *MODEL, *ALONE, "--save_probabilities"]
    monkeypatch.setattr(sys, "argv", ["nnUNetv2_predict", *command])
    predict_from_raw_data.predict_entry_point()
    expected = segmentations(here / "stock")
    assert len(np.unique(expected)) > 1
    names = sorted(f.name for f in (here / "stock").iterdir())
    for way in ("float32", "measure", "fastest"):
        command[3] = way
        assert main(["predict", *([] if way == "fastest" else ["--cpu_speed", way]), *command]) == 0
        assert sorted(f.name for f in (here / way).iterdir()) == names
        assert (segmentations(here / way) == expected).mean() >= {"float32": 1, "measure": 0.95, "fastest": 0.999}[way]
    out = capsys.readouterr().out
    assert "nnunetv2_kd: the network computes in float32\n" in out
    assert "(measured, forward: float32 " in out
    assert predict_from_raw_data.nnUNetPredictor is nnUNetPredictor
    assert sys.argv == ["nnUNetv2_predict", "-i", "my images", "-o", "stock", *command[4:]]


@pytest.mark.skipif(not cpu_has_bfloat16(), reason="this processor has no bfloat16 instructions")
@pytest.mark.parametrize("way", ["bfloat16", "bfloat16_channels_last"])
def test_every_pass_is_in_bfloat16(here, way, monkeypatch):
    dtypes = set()
    plain = torch.nn.functional.leaky_relu
    monkeypatch.setattr(torch.nn.functional, "leaky_relu", lambda x, *args: (dtypes.add(x.dtype), plain(x, *args))[1])
    assert main(["predict", "-i", "my images", "-o", "out", *MODEL, *ALONE, "--cpu_speed", way]) == 0
    assert dtypes == {torch.bfloat16}


def test_model_folder(here, monkeypatch):
    """The arguments of nnUNetv2_predict_from_modelfolder, which itself always starts processes; this does not."""
    monkeypatch.setattr(nnUNetPredictor, "predict_from_files", lambda self, i, o, **kwargs: calls.append((i, o)))
    calls = []
    folder = here / "results" / DATASET / "nnUNetTrainer__nnUNetPlans__3d_fullres"
    assert main(["predict", "-i", "my images", "-o", "out", "-m", str(folder), "-f", "0", "-device", "cpu"]) == 0
    assert calls == [("my images", "out")]


@pytest.mark.parametrize(
    ("folder", "expected"),
    [("none", "-i none is not a folder"), ("empty", "-i empty holds no image named CASE_0000.nii.gz")],
)
def test_images_are_looked_for_before_a_network_is_loaded(here, capsys, monkeypatch, folder, expected):
    monkeypatch.setattr(nnUNetPredictor, "initialize_from_trained_model_folder", lambda *args: pytest.fail("loaded"))
    (here / "empty").mkdir()
    assert main(["predict", "-i", folder, "-o", "out", *MODEL, *ALONE]) == 1
    assert expected in capsys.readouterr().err


def test_a_model_that_is_not_there_and_those_that_are(here, capsys):
    assert main(["predict", "-i", "my images", "-o", "out", *MODEL, "-p", "nnUNetPlansNone", *ALONE]) == 1
    error = capsys.readouterr().err
    assert "-tr nnUNetTrainer -p nnUNetPlans -c 3d_fullres" in error


def test_a_case_that_fails_is_named_and_the_others_go_on(here, capsys):
    add_images(here / "three", 3)
    (here / "three" / "box1_0000.nii.gz").write_bytes(b"no image")
    two = sitk.GetImageFromArray(np.zeros((4, 4, 4, 2), np.float32), isVector=True)
    sitk.WriteImage(two, str(here / "three" / "box2_0000.nii.gz"))
    (here / "three" / "box2_0001.nii.gz").write_bytes((here / "three" / "box0_0000.nii.gz").read_bytes())
    whole = (here / "three" / "box0_0000.nii.gz").read_bytes()
    (here / "three" / "box3_0000.nii.gz").write_bytes(whole[: len(whole) // 2])  # which ITK fills with 0
    assert main(["predict", "-i", "three", "-o", "out", *MODEL, *ALONE, "--runtime", "torch"]) == 1
    error = capsys.readouterr().err
    assert "3 of 4 cases were not predicted; 1 were:" in error
    assert "  - box3: box3_0000.nii.gz cannot be read: it is cut short or damaged" in error
    assert "  - box1: " in error
    assert "  - box2: " in error
    assert [f.name for f in (here / "out").glob("*.nii.gz")] == ["box0.nii.gz"]
    assert not list((here / "out").glob(".unfinished*"))


def test_another_number_of_channels(here, capsys):
    files = sorted((here / "my images").iterdir())
    (here / "my images" / "box0_0001.nii.gz").write_bytes(files[0].read_bytes())
    assert main(["predict", "-i", "my images", "-o", "out", *MODEL, *ALONE, "--runtime", "torch"]) == 1
    assert "box0: has the channels 0000, 0001, expected 0000" in capsys.readouterr().err


def test_threads_and_no_threads_write_the_same(here, monkeypatch):
    add_images(here / "many", 5)
    monkeypatch.setattr("nnunetv2_kd.inference.predictor.prediction_threads", lambda: 3)
    for output, workers in (("alone", "0"), ("threads", "3")):
        command = ["-i", "many", "-o", output, *MODEL, "-device", "cpu", "--disable_progress_bar"]
        assert main(["predict", *command, "-npp", workers, "-nps", workers, "--runtime", "torch"]) == 0
    assert (segmentations(here / "alone") == segmentations(here / "threads")).all()
    assert len(segmentations(here / "threads")) == 5


def test_a_file_cut_short_and_a_training_that_goes_on(here, capsys):
    fold = here / "results" / DATASET / "nnUNetTrainer__nnUNetPlans__3d_fullres" / "fold_0"
    whole = (fold / "checkpoint_final.pth").read_bytes()
    command = ["predict", "-i", "my images", "-o", "out", *MODEL, *ALONE]
    for content in (whole[:5000], b""):
        (fold / "checkpoint_final.pth").write_bytes(content)
        assert main(command) == 1
        assert "it is truncated, empty, or not a checkpoint" in capsys.readouterr().err
    (fold / "checkpoint_final.pth").unlink()
    (fold / "checkpoint_best.pth").write_bytes(whole)
    assert main(command) == 1
    assert "its training is not finished (to go on, add --c; or predict with -chk checkpoint_best.pth)" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize("swapped", [0, 1])
@pytest.mark.parametrize("runtime", ["torch", "measure"])
def test_weights_of_another_model(here, capsys, swapped, runtime):
    """In the first fold, and in a later fold, which nnU-Net would only load after the first case."""
    other = add_model(here / "elsewhere", "nnUNetTrainer", features=(8, 16))
    for fold in (0, 1):
        folder = add_model(here / "results", "nnUNetTrainerTwo", fold=fold) / f"fold_{fold}"
        if fold == swapped:
            shutil.copyfile(other / "fold_0" / "checkpoint_final.pth", folder / "checkpoint_final.pth")
    command = ["predict", "-i", "my images", "-o", "out", *MODEL[:-1], "0", "1", "-tr", "nnUNetTrainerTwo", *ALONE]
    assert main([*command, "--runtime", runtime]) == 1
    error = capsys.readouterr().err
    assert "nnU-Net cannot load checkpoint_final.pth of " in error
    assert "do not fit the network of its plans.json" in error
    assert "Weights, plans.json and dataset.json must be from the same training" in error
    assert not list((here / "out").glob("*.nii.gz"))


@pytest.mark.parametrize(
    ("runtime", "packages"), [("openvino", ["openvino", "onnx"]), ("onnx", ["onnxruntime", "onnx"])]
)
def test_a_runtime_that_is_not_installed(here, capsys, monkeypatch, runtime, packages):
    monkeypatch.setattr("nnunetv2_kd.inference.runtimes.package_version", lambda name: "1" if name == "torch" else None)
    command = ["predict", "-i", "my images", "-o", "out", *MODEL, *ALONE]
    assert main([*command, "--runtime", runtime]) == 1
    error = capsys.readouterr().err
    assert "is not installed. Type: pip install 'nnunetv2_kd[cpu]'" in error
    assert all(f"  - {package}" in error for package in packages)
    assert main([*command, "--precision", "int8"]) == 1
    assert "--precision int8 needs OpenVINO, which is not installed. Type: pip install" in capsys.readouterr().err
    assert main(command) == 0
    assert "the network runs in PyTorch, f32" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            {"-f": "3"},
            "fold_3/checkpoint_final.pth does not exist\nFolds with checkpoint_final.pth: 0. Name them: -f 0",
        ),
        ({"-c": "2d"}, "nnUNetTrainer__nnUNetPlans__2d/plans.json does not exist"),
        ({"-d": "999"}, "There is no dataset 999"),
        ({"-f": "first"}, "-f takes fold numbers, or all; found first"),
        ({"-device": "tpu"}, "nnU-Net refused the arguments: -device must be either cpu, mps or cuda"),
        ({"-i": "nowhere"}, "-i nowhere is not a folder"),
        ({"-i": "raw"}, "-i raw holds no image named CASE_0000.nii.gz"),
        ({"-device": "cuda"}, "This machine has no device cuda. Add: -device cpu"),
        ({"--cpu_speed": "bfloat16"}, "bfloat16 needs a processor with bfloat16 instructions"),
        ({"--precision": "bf16"}, "bfloat16 needs a processor with bfloat16 instructions"),
        ({"--runtime": "torch", "--precision": "int8"}, "--runtime torch has no --precision int8"),
        ({"--runtime": "onnx", "-device": "cuda"}, "--runtime onnx --precision f32 is for -device cpu"),
        ({"--runtime": "onnx", "--cpu_speed": "float32"}, "Leave out either it, or --runtime and --precision"),
        ({"-o": "my images/box0_0000.nii.gz/out"}, "cannot be written to"),
    ],
)
def test_refuses(here, capsys, monkeypatch, change, expected):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.set_num_interop_threads", lambda _: None)  # once in a process, and nnU-Net for a GPU
    monkeypatch.setattr("nnunetv2_kd.networks.cpu_mode.cpu_has_bfloat16", lambda: False)
    flags = {"-i": "my images", "-o": "out", "-d": "7", "-c": "3d_fullres", "-f": "0", "-device": "cpu"} | change
    assert main(["predict", *(part for pair in flags.items() for part in pair), "-npp", "0", "-nps", "0"]) == 1
    assert expected in capsys.readouterr().err


def test_unknown_arguments_are_refused_by_nnunet_here_and_by_us_elsewhere(here, capsys):
    with pytest.raises(SystemExit):
        main(["predict", "-i", "my images", "-o", "out", *MODEL, "--nonsense"])
    assert "nnUNetv2_predict: error: unrecognized arguments: --nonsense" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["doctor", "--nonsense"])
    assert "nnUNetv2_kd: error: unrecognized arguments: --nonsense" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["predict", "--help"])
    assert "--cpu_speed WAY" in capsys.readouterr().out


def test_folds_that_are_named_are_those_of_the_cross_validation(tmp_path):
    """If there are other folds, ``all`` is not part of the ensemble."""
    for fold in ("0", "1", "all"):
        (tmp_path / f"fold_{fold}").mkdir()
        (tmp_path / f"fold_{fold}" / "checkpoint_final.pth").touch()
    for name in ("plans.json", "dataset.json"):
        (tmp_path / name).touch()
    with pytest.raises(KDError, match=r"Folds with checkpoint_final\.pth: 0, 1, all\. Name them: -f 0 1$"):
        check_model(tmp_path, [7], "checkpoint_final.pth")
    for fold in ("0", "1"):
        (tmp_path / f"fold_{fold}" / "checkpoint_final.pth").unlink()
    with pytest.raises(KDError, match="Name them: -f all$"):
        check_model(tmp_path, [7], "checkpoint_final.pth")


def test_images_that_cannot_be_predicted_are_reported_first(here):
    model = here / "results" / DATASET / "nnUNetTrainer__nnUNetPlans__3d_fullres"
    images = here / "some"
    add_images(images, 3)
    assert image_problems(images, model) == []
    (images / "box1_0000.nii.gz").write_bytes((images / "box1_0000.nii.gz").read_bytes()[:-9])
    (message,) = image_problems(images, model)
    assert message.startswith("box1: ")
    for case in ("box0", "box2"):
        (images / f"{case}_0000.nii.gz").write_text("")
    with pytest.raises(KDError, match="No image in -i .* can be predicted:(.|\n)*box0(.|\n)*box1(.|\n)*box2"):
        image_problems(images, model)
