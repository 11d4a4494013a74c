import sys

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.inference import predict_from_raw_data
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from nnunetv2_kd.cli.main import main
from nnunetv2_kd.networks.cpu_mode import cpu_has_bfloat16
from tests.untrained_models import DATASET, add_images, add_model, make_folders

MODEL = ["-d", "7", "-c", "3d_fullres", "-f", "0"]
ALONE = ["-device", "cpu", "-npp", "0", "-nps", "0", "--disable_progress_bar"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A model, two images, and nnU-Net's folders."""
    make_folders(tmp_path, monkeypatch)
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
    for way in ("float32", "measure"):
        command[3] = way
        assert main(["predict", "--cpu_speed", way, *command]) == 0
        assert sorted(f.name for f in (here / way).iterdir()) == names
        assert (segmentations(here / way) == expected).mean() >= (1 if way == "float32" else 0.95)
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
    """As nnUNetv2_predict_from_modelfolder takes it, which always starts processes: not here."""
    monkeypatch.setattr(nnUNetPredictor, "predict_from_files", lambda self, i, o, **kwargs: calls.append((i, o)))
    calls = []
    folder = here / "results" / DATASET / "nnUNetTrainer__nnUNetPlans__3d_fullres"
    assert main(["predict", "-i", "my images", "-o", "out", "-m", str(folder), "-f", "0", "-device", "cpu"]) == 0
    assert calls == [("my images", "out")]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            {"-f": "3"},
            "fold_3/checkpoint_final.pth does not exist\nFolds with checkpoint_final.pth: 0. Name them: -f 0",
        ),
        ({"-c": "2d"}, "nnUNetTrainer__nnUNetPlans__2d/plans.json does not exist"),
        ({"-i": "nowhere"}, "-i nowhere is no folder"),
        ({"-i": "raw"}, "-i raw holds no image named CASE_0000.nii.gz"),
        ({"-device": "cuda"}, "There is no device cuda here. Add: -device cpu"),
        ({"--cpu_speed": "bfloat16"}, "bfloat16 needs a processor with bfloat16 instructions"),
    ],
)
def test_refuses(here, capsys, monkeypatch, change, expected):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
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
