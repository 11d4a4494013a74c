"""Every kind of model in every runtime, against nnU-Net's own prediction."""

import sys

import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.inference import predict_from_raw_data

from nnunetv2_kd.cli.main import main
from nnunetv2_kd.inference.runtimes import is_installed
from nnunetv2_kd.networks.cpu_mode import cpu_has_bfloat16
from tests.inference.models import KINDS, make_images, make_model, make_previous

ALONE = ["-device", "cpu", "-npp", "0", "-nps", "0", "--disable_progress_bar"]
RUNTIMES = [
    pytest.param(r, marks=pytest.mark.skipif(not is_installed(r), reason=f"{r} is not installed"))
    for r in ("torch", "openvino", "onnx")
]
needs_openvino = pytest.mark.skipif(not is_installed("openvino"), reason="openvino is not installed")


def arguments(kind: str, output: str, configuration: str, folds: tuple[int, ...] = (0,)) -> list[str]:
    command = ["-i", "images", "-o", output, "-d", "7", "-c", configuration, "-f", *map(str, folds), *ALONE]
    return [*command, "-prev_stage_predictions", "previous"] if kind == "cascade" else command


def stock(monkeypatch, command: list[str]) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(sys, "argv", ["nnUNetv2_predict", *command])
        predict_from_raw_data.predict_entry_point()


def segmentations(folder):
    return np.stack([sitk.GetArrayFromImage(sitk.ReadImage(str(f))) for f in sorted(folder.glob("*.nii.gz"))])


def differing(here, output: str) -> int:
    expected = segmentations(here / "stock")
    assert len(np.unique(expected)) > 1
    return int((segmentations(here / output) != expected).sum())


@pytest.mark.parametrize("kind", list(KINDS))
def test_every_kind_of_model_in_every_runtime(here, monkeypatch, kind):
    model = make_model(here / "results", resampled=kind in ("plain", "regions"), **KINDS[kind])
    cases = make_images(here / "images", channels=KINDS[kind].get("channels", 1))
    if kind == "cascade":
        make_previous(here / "previous", cases)
    configuration = model.name.split("__")[-1]
    stock(monkeypatch, arguments(kind, "stock", configuration))
    for runtime in ("torch", "openvino", "onnx"):
        if is_installed(runtime):
            command = arguments(kind, runtime, configuration)
            assert main(["predict", "--runtime", runtime, *command]) == 0
            assert differing(here, runtime) <= (0 if runtime == "torch" else 3), runtime


def test_a_cascade_without_its_previous_stage(here, capsys):
    make_model(here / "results", cascade=True)
    make_images(here / "images")
    assert main(["predict", "--runtime", "torch", *arguments("", "out", "3d_cascade_fullres")]) == 1
    assert "nnU-Net refused the arguments: The requested configuration is a cascaded network" in capsys.readouterr().err


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_folds_predict_together(here, monkeypatch, runtime):
    make_model(here / "results", folds=(0, 1))
    make_images(here / "images")
    stock(monkeypatch, arguments("", "stock", "3d_fullres", (0, 1)))
    assert main(["predict", "--runtime", runtime, *arguments("", "both", "3d_fullres", (0, 1))]) == 0
    assert differing(here, "both") <= 3
    assert main(["predict", "--runtime", runtime, *arguments("", "one", "3d_fullres", (1,))]) == 0
    assert differing(here, "one") > 100


@needs_openvino
def test_measured_once(here, monkeypatch, capsys):
    make_model(here / "results")
    make_images(here / "images")
    command = arguments("", "out", "3d_fullres")
    assert main(["predict", *command]) == 0
    first = capsys.readouterr().out
    assert "nnunetv2_kd: the network runs in" in first
    assert "measured, ms per patch: PyTorch " in first
    monkeypatch.setattr("nnunetv2_kd.inference.choose.time_in_turns", lambda *args: pytest.fail("measured again"))
    assert main(["predict", *command]) == 0
    assert [line for line in first.splitlines() if "runs in" in line] == [
        line for line in capsys.readouterr().out.splitlines() if "runs in" in line
    ]


@needs_openvino
@pytest.mark.skipif(not cpu_has_bfloat16(), reason="this processor has no bfloat16 instructions")
def test_precisions_differ(here, monkeypatch):
    """f32 must be requested explicitly, because OpenVINO's own default is bfloat16 if the processor has it."""
    make_model(here / "results")
    make_images(here / "images")
    stock(monkeypatch, [*arguments("", "stock", "3d_fullres"), "--save_probabilities"])
    found = {}
    for precision in ("f32", "bf16"):
        command = [*arguments("", precision, "3d_fullres"), "--save_probabilities"]
        assert main(["predict", "--runtime", "openvino", "--precision", precision, *command]) == 0
        expected, got = (np.load(here / folder / "box0.npz")["probabilities"] for folder in ("stock", precision))
        found[precision] = float(np.abs(expected.astype(float) - got).max())
    assert found["f32"] < 2e-3 < found["bf16"] < 0.2


@needs_openvino
def test_a_network_that_cannot_be_converted(here, monkeypatch, capsys):
    """If the runtime was named, it is refused; if it was to be measured, it is left out."""
    make_model(here / "results")
    make_images(here / "images")

    def refuse(*args, **kwargs):
        raise RuntimeError("Unsupported: aten::strange")

    monkeypatch.setattr("torch.onnx.export", refuse)
    command = arguments("", "out", "3d_fullres")
    assert main(["predict", "--runtime", "openvino", *command]) == 1
    error = capsys.readouterr().err
    assert "PlainConvUNet cannot be converted to ONNX: RuntimeError: Unsupported: aten::strange" in error
    assert "--runtime torch" in error
    assert main(["predict", *command]) == 0
    out = capsys.readouterr().out
    assert "OpenVINO is left out: PlainConvUNet cannot be converted" in out
    assert "the network runs in PyTorch, f32" in out


@needs_openvino
def test_a_conversion_that_computes_something_else(here, monkeypatch, capsys):
    make_model(here / "results")
    make_images(here / "images")
    from nnunetv2_kd.inference import choose

    real = choose.open_session

    def wrong(*args):
        session = real(*args)
        return lambda data: session(data) * 1.1

    monkeypatch.setattr(choose, "open_session", wrong)
    assert main(["predict", "--runtime", "openvino", *arguments("", "out", "3d_fullres")]) == 1
    assert "PlainConvUNet computes something else in OpenVINO than in PyTorch" in capsys.readouterr().err
