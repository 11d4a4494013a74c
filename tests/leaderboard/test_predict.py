import json
import re
import shutil

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from nnunetv2_kd.errors import KDError
from nnunetv2_kd.inference.runtimes import is_installed
from nnunetv2_kd.leaderboard import evaluate
from nnunetv2_kd.leaderboard import predict as module
from nnunetv2_kd.leaderboard.predict import check_images, predict
from nnunetv2_kd.leaderboard.request import LeaderboardRequest, RunsIn
from nnunetv2_kd.nnunet.files import check_writable
from nnunetv2_kd.nnunet.trained_models import find_models
from tests.scored_models import DATASET, Results, shifted, truth_of, write
from tests.small_networks import DATASET_JSON
from tests.untrained_models import DATASET as UNTRAINED
from tests.untrained_models import add_images, add_model, make_folders


@pytest.fixture
def folders(results: Results):
    """Images and ground truth that fit."""
    images, truths = results.root / "my images", results.root / "my labels"
    shutil.copytree(results.root / "raw" / DATASET / "imagesTr", images)
    shutil.copytree(results.truths, truths)
    return images, truths


def refused(folders, expected, dataset_json=DATASET_JSON):
    with pytest.raises(KDError) as caught:
        check_images(*folders, dataset_json)
    assert re.search(expected, str(caught.value)), str(caught.value)


def test_images_that_fit(folders):
    images = check_images(*folders, DATASET_JSON)
    assert len(images.cases) == 16
    assert images.image_files("box000") == [str(folders[0] / "box000_0000.nii.gz")]


def test_a_dataset_of_nnunet_v1(folders):
    """Its dataset.json has the key modality."""
    old = {key: value for key, value in DATASET_JSON.items() if key != "channel_names"}
    assert check_images(*folders, old | {"modality": DATASET_JSON["channel_names"]}).channels == 1


def test_missing_folders_and_truths(folders):
    images, truths = folders
    refused((images / "none", truths), r"^-i .*none is not a folder")
    refused((images, truths / "none"), r"^-gt .*none is not a folder")
    refused((truths.parent / "raw", truths), r"holds no image named CASE_0000.nii.gz")
    (truths / "box003.nii.gz").unlink()
    refused(folders, r"1 of 16 images have no ground truth:\n  - box003: .*my labels/box003.nii.gz does not exist")


def test_other_geometry(folders):
    write(folders[1] / "box000.nii.gz", truth_of(0)[:4])
    write(folders[1] / "box001.nii.gz", truth_of(1), (1.0, 1.0, 1.0))
    refused(folders, r"2 of 16 cases do not fit")
    refused(folders, r"box000: image and ground truth differ: 8×14×14 voxels against 4×14×14")
    refused(folders, r"box001: image and ground truth differ: spacing \[3.0, 1.0, 1.0\] against \[1.0, 1.0, 1.0\]")


def test_other_labels_channels_and_broken_files(folders):
    write(folders[1] / "box000.nii.gz", truth_of(0) * 3)
    (folders[0] / "box001_0000.nii.gz").write_bytes(b"no image")
    refused(folders, r"box000: the ground truth has labels \[3, 6\], the models know \[0, 1, 2\]")
    refused(folders, r"box001: cannot be read: ")
    two = DATASET_JSON | {"channel_names": {"0": "T1", "1": "T2"}}
    refused(folders, r"box002: has the channels 0000, expected 0000, 0001", two)


def test_predictions_are_reused_until_something_changes(folders, results, monkeypatch, tmp_path):
    folder = results.add("nnUNetTrainer", shifted(0))
    calls = []

    class Predictor:
        def predict_from_files_sequential(self, files, outputs):
            calls.append(len(files))
            for output in outputs:
                write(module.Path(f"{output}.nii.gz"), np.zeros((2, 2, 2), dtype=np.uint8))

    monkeypatch.setattr(module, "predictor_of", lambda model, device: Predictor())
    images = check_images(*folders, DATASET_JSON)

    def again() -> int:
        predict(find_models(DATASET)[0][0], images, tmp_path / "predictions", None)
        return len(calls)

    assert again() == again() == 1
    (tmp_path / "predictions" / "box000.nii.gz").unlink()
    assert again() == again() == 2
    checkpoint = folder / "fold_0" / "checkpoint_final.pth"
    checkpoint.write_bytes(checkpoint.read_bytes() + b"\0")
    assert again() == 3
    write(folders[0] / "box000_0000.nii.gz", np.ones((8, 14, 14), dtype=np.float32))
    assert again() == 4


def test_a_model_that_cannot_predict_says_why(folders, results, tmp_path):
    results.add("nnUNetTrainer", shifted(0))
    images = check_images(*folders, DATASET_JSON)
    with pytest.raises(KDError, match="nnU-Net cannot predict with it: The weights in .* do not fit"):
        predict(find_models(DATASET)[0][0], images, tmp_path / "predictions", module.torch.device("cpu"))


def test_output_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(
        KDError, match=r"file/out cannot be written to: Not a directory. Choose another folder, or: chm"
    ):
        check_writable(tmp_path / "file" / "out")

    def refuse(dir):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(
        "nnunetv2_kd.nnunet.files.tempfile.TemporaryFile", refuse
    )  # a test may run as root, who can write anywhere
    with pytest.raises(KDError, match="Permission denied"):
        check_writable(tmp_path / "out")


@pytest.mark.skipif(not is_installed("openvino"), reason="openvino is not installed")
def test_in_another_runtime(tmp_path, monkeypatch):
    """The voxels are the same, and predictions of another runtime are not reused."""
    make_folders(tmp_path, monkeypatch)
    monkeypatch.setenv("nnUNet_kd_cache", str(tmp_path / "cache"))
    add_model(tmp_path / "results", "nnUNetTrainer")
    cases = add_images(tmp_path / "images", 1)
    (model,), _ = find_models(UNTRAINED)
    images = module.ImageSet(tmp_path / "images", tmp_path, tuple(cases), 1, ".nii.gz", SimpleITKIO)
    stamps = []
    for runtime in (None, "openvino"):
        predict(model, images, tmp_path / "out", torch.device("cpu"), RunsIn(runtime))
        stamps.append(json.loads((tmp_path / "out" / module.STAMP).read_text()))
        segmentation = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "out" / "box0.nii.gz")))
        if runtime is None:
            expected = segmentation
    assert (segmentation != expected).sum() <= 3
    assert "runtime" not in stamps[0]
    assert stamps[1]["runtime"] == "openvino"


def test_what_a_predecessor_predicted_is_not_scored(folders, results, monkeypatch, tmp_path):
    """A checkpoint that can no longer predict has no scores, whatever files are in its folder."""
    results.add("nnUNetTrainer", shifted(0))
    images, model = check_images(*folders, DATASET_JSON), find_models(DATASET)[0][0]
    folder = tmp_path / model.name
    shutil.copytree(folders[1], folder)

    def refuse(*_):
        raise KDError("nnU-Net cannot predict with it")

    monkeypatch.setattr(evaluate, "predict", refuse)
    request = LeaderboardRequest([DATASET], torch.device("cpu"))
    found = evaluate._prediction_work([model], {model.name: RunsIn()}, images, request, tmp_path, lambda line: None)
    assert found.jobs == []
    assert len({row["case"] for row in found.failed}) == 16
    assert "cannot predict" in found.problems[0]
