"""Storing a teacher's predictions: what is written, and everything that can interrupt it."""

import json
import re
import shlex
from pathlib import Path
from unittest import mock

import blosc2
import numpy as np
import pytest
import torch
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

from nnunetv2_kd.cli.main import main
from nnunetv2_kd.errors import KDError
from nnunetv2_kd.nnunet.locks import lock_folder
from nnunetv2_kd.regions import region_vectors
from nnunetv2_kd.regions.membership import label_regions
from nnunetv2_kd.teachers.find import StudentIdentity
from nnunetv2_kd.teachers.stored import case_vectors, quantization, write
from nnunetv2_kd.teachers.stored.case_vectors import target_of
from nnunetv2_kd.teachers.stored.predictor import CasePredictor
from nnunetv2_kd.teachers.stored.store import Store
from tests.conftest import DATASET
from tests.room_on_disk import fill, small_disk
from tests.trainers.helpers import inside

pytestmark = pytest.mark.commands
DATA = "nnUNetPlans_3d_fullres"


@pytest.fixture
def here(stored_world, monkeypatch):
    monkeypatch.setattr("sys.argv", ["nnUNetv2_kd", "store", "-d", "4", "-device", "cpu"])
    return inside(stored_world, monkeypatch)


def folder_of(world, name="fold_0") -> Path:
    return world.preprocessed / DATASET / f"{DATA}_teacher_{name}"


def store(*flags):
    return main(["store", "-d", "4", "-device", "cpu", *flags])


def counting(monkeypatch, stop_at=None, error=None):
    """The cases that are stored from now on; at one of them, an error is raised."""
    done = []
    plain = write._store_case

    def watched(task, models, dataset, case):
        if stop_at is not None and len(done) == stop_at:
            raise error
        plain(task, models, dataset, case)
        done.append(case)

    monkeypatch.setattr(write, "_store_case", watched)
    return done


def test_what_is_stored_is_nnunets_prediction(stored_trained_world, here, monkeypatch):
    for words in (
        "6 cases",
        "% of the preprocessed data",
        "largest quantization error of a probability 0.00",
        "mean Dice",
        'stored_teacher: "fold_0"',
    ):
        assert words in stored_trained_world.log
    kept = Store(folder_of(here))
    case = kept.header["cases"][0]
    model = CasePredictor(*model_arguments(here), torch.device("cpu"), mirroring=True, bfloat16=False)
    data = blosc2.open(str(here.preprocessed / DATASET / DATA / f"{case}.b2nd"))[:]
    expected = quantization.stored_channels(model.logits(torch.from_numpy(data)), sigmoid=False).numpy()
    stored = blosc2.open(str(kept.folder / f"{case}.b2nd"))
    assert stored.dtype == np.uint8
    np.testing.assert_allclose(quantization.decode(stored[:]), expected, atol=quantization.MAX_ERROR + 1e-5)
    record = kept.record(case)
    assert 0 < record["error"] <= quantization.MAX_ERROR
    assert len(record["dice"]) == 2
    teacher = kept.header["teachers"][0]
    trainer = "nnUNetTrainerKDBaseline"  # the checkpoint's own word: the fixture renames the model's folder
    assert (teacher["fold"], teacher["mirroring"], teacher["trainer"]) == ("0", [0, 1, 2], trainer)
    assert teacher["stages"]["encoder.1"] == [2, 2, 2]


def model_arguments(world):
    from nnunetv2_kd.config import TeacherOptions

    dataset = world.preprocessed / DATASET
    plans, dataset_json = (json.loads((dataset / f"{n}.json").read_text()) for n in ("nnUNetPlans", "dataset"))
    return TeacherOptions(fold=0), StudentIdentity(DATASET, "nnUNetPlans", "3d_fullres", 0), plans, dataset_json


def test_vectors_are_those_of_the_regions(here):
    """For a case that fits into one window, compared with the plain definition."""
    kept = Store(folder_of(here))
    case = kept.header["cases"][0]
    model = CasePredictor(*model_arguments(here), torch.device("cpu"), mirroring=False, bfloat16=False)
    patch = model.predictor.configuration_manager.patch_size
    data = torch.randn(1, *patch, generator=torch.Generator().manual_seed(0))
    labels = torch.zeros(1, *patch, dtype=torch.int16)
    labels[:, 4:9, 4:, :7] = 2
    kd_labels = mock.Mock(regions=lambda target: label_regions(target, 3))
    with mock.patch("nnunetv2_kd.teachers.stored.case_vectors.compute_gaussian", return_value=torch.ones(tuple(patch))):
        found = case_vectors.case_region_vectors(model.predictor, model.taps, data, labels, kd_labels)
    model.taps.recording = True
    model.predictor.network(data[None])
    for stage, features in model.taps.take().items():
        expected, present = region_vectors(features, label_regions(labels[None], 3))
        np.testing.assert_allclose(found[stage], expected[0].detach().numpy(), atol=1e-4)
        assert present.tolist() == [[True, False, True]]
    assert {name.split("/")[1] for name in kept.vectors(case)} == set(found)


def test_outside_of_the_body_is_background():
    manager = mock.Mock(has_regions=False)
    assert target_of(np.array([[[-1, 2]]], np.int16), manager).tolist() == [[[0, 2]]]


def test_nnunet_takes_no_notice_of_it(stored_trained_world):
    """It reads the folder of its own data only."""
    from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class

    data = stored_trained_world.preprocessed / DATASET / DATA
    assert len(infer_dataset_class(str(data)).get_identifiers(str(data))) == 6


def test_interrupted_and_gone_on_with(here, monkeypatch, capsys):
    with monkeypatch.context() as inner:
        counting(inner, stop_at=2, error=KeyboardInterrupt())
        assert store("-o", "again", "--disable_tta") == 130
    assert len(list(folder_of(here, "again").glob("*.npz"))) == 2
    assert not list(folder_of(here, "again").glob("*.unfinished"))
    done = counting(monkeypatch)
    assert store("-o", "again", "--disable_tta") == 0
    assert len(done) == 4
    output = capsys.readouterr()
    assert "2 of 6 cases are stored already" in output.err
    assert "6 cases" in output.out


def test_a_full_disk_loses_nothing(here, monkeypatch, capsys):
    with monkeypatch.context() as inner:
        counting(inner, stop_at=3, error=OSError(28, "No space left on device"))
        assert store("-o", "full", "--disable_tta") == 1
    error = capsys.readouterr().err
    assert "The disk is full" in error
    assert "holds 3 finished cases, which are kept" in error
    assert "continue with: nnUNetv2_kd store -d 4 -device cpu" in error
    done = counting(monkeypatch)
    assert store("-o", "full", "--disable_tta") == 0
    assert len(done) == 3


def test_a_disk_that_is_really_full(here, monkeypatch, capsys):
    """A file system of a few megabytes, with room for some of the cases."""
    with small_disk(here.preprocessed, 64):
        filling = fill(here.preprocessed, leave=200_000)
        assert store("-o", "full", "--disable_tta") == 1
        found = re.search(r"The disk is full: .* holds (\d) finished cases, which are kept", capsys.readouterr().err)
        assert found is not None
        kept = int(found[1])
        assert 0 < kept < 6
        assert not list(folder_of(here, "full").glob("*.unfinished"))
        filling.unlink()
        done = counting(monkeypatch)
        assert store("-o", "full", "--disable_tta") == 0
        assert len(done) == 6 - kept


@pytest.mark.filterwarnings("ignore:Warning. Received empty chunks:UserWarning")
def test_damaged_cases_are_named_and_the_others_stored(here, capsys):
    data = here.preprocessed / DATASET / DATA
    empty, cut, label, size, large, well = (file.stem for file in sorted(data.glob("*.pkl")))
    (data / f"{empty}.pkl").write_bytes(b"")
    (data / f"{cut}.b2nd").write_bytes((data / f"{cut}.b2nd").read_bytes()[:-50])
    rewrite(data, label, segmentation=lambda values: np.full_like(values, 7))
    rewrite(data, size, segmentation=lambda values: values[:, 1:])
    rewrite(data, large, image=lambda values: np.full_like(values, 3e38))  # what a network makes of it is no number
    assert store("-o", "damaged", "--disable_tta") == 1
    error = capsys.readouterr().err
    for case, words in (
        (empty, "cannot be read"),
        (cut, "cannot be read"),
        (label, "labels that dataset.json does not have: [7]"),
        (size, "image and segmentation differ in size"),
        (large, "not finite"),
    ):
        assert re.search(rf"{case}\b[^\n]*{re.escape(words)}", error), (case, error)
    assert {file.stem for file in folder_of(here, "damaged").glob("*.npz")} == {well}


def rewrite(data: Path, case: str, **changes) -> None:
    """A preprocessed case with another image or segmentation."""
    image, segmentation, _, properties = nnUNetDatasetBlosc2(str(data)).load_case(case)
    image, segmentation = np.array(image), np.array(segmentation)
    for file in data.glob(f"{case}*.b2nd"):
        file.unlink()
    image = changes.get("image", lambda values: values)(image)
    segmentation = changes.get("segmentation", lambda values: values)(segmentation)
    nnUNetDatasetBlosc2.save_case(image, segmentation, properties, str(data / case))


def test_the_line_after_a_failed_overwrite_works(here, monkeypatch, capsys):
    line = ["store", "-d", "4", "-device", "cpu", "--disable_tta", "--overwrite"]
    with monkeypatch.context() as inner:
        inner.setattr("sys.argv", ["nnUNetv2_kd", *line])
        inner.setattr("os.fsync", mock.Mock(side_effect=OSError(28, "No space left on device")))
        assert main(line) == 1
    assert len(Store(folder_of(here)).header["cases"]) == 6  # the one of before
    printed = re.search(r"continue with: nnUNetv2_kd (store .*)", capsys.readouterr().err)[1]
    assert "--overwrite" in printed
    done = counting(monkeypatch)
    assert main(shlex.split(printed)) == 0
    assert len(done) == 6


def test_only_what_is_missing_or_changed_is_made_again(here, monkeypatch):
    """A truncated file, a missing file, a missing record, and preprocessed data that have changed."""
    folder, data = folder_of(here), here.preprocessed / DATASET / DATA
    cases = Store(folder).header["cases"]
    file = folder / f"{cases[0]}.b2nd"
    file.write_bytes(file.read_bytes()[:-20])
    (folder / f"{cases[1]}.npz").unlink()
    (folder / f"{cases[2]}.json").unlink()
    for end in (".b2nd", "_seg.b2nd", ".pkl"):
        (data / f"{cases[4]}{end}").write_bytes((data / f"{cases[3]}{end}").read_bytes())
        (data / f"added{end}").write_bytes((data / f"{cases[3]}{end}").read_bytes())
    done = counting(monkeypatch)
    assert store() == 0
    assert done == ["added", cases[0], cases[1], cases[2], cases[4]]
    done.clear()
    assert store() == 0
    assert done == []


def test_other_teachers_and_settings_do_not_mix(here, monkeypatch, capsys):
    done = counting(monkeypatch)
    assert store("--disable_tta") == 1
    error = capsys.readouterr().err
    assert "was made with other teachers or settings, by: nnUNetv2_kd store -d 4" in error
    assert "Choose another name with -o, or add --overwrite" in error
    assert done == []
    assert store("--disable_tta", "--overwrite") == 0
    assert len(done) == 6


@pytest.mark.parametrize("flags", [(), ("--overwrite",)])
@pytest.mark.parametrize("folder", ["", DATA])
def test_only_a_folder_of_its_own_is_written_to(here, capsys, flags, folder):
    """Neither the dataset's folder nor that of its preprocessed cases, whatever the flags say."""
    theirs = here.preprocessed / DATASET / folder
    before = {file.name: file.stat().st_mtime_ns for file in theirs.iterdir()}
    assert store("-o", str(theirs), *flags) == 1
    error = capsys.readouterr().err
    assert "is not a stored teacher: it has no store.json, but holds" in error
    assert "Nothing was changed" in error
    assert {file.name: file.stat().st_mtime_ns for file in theirs.iterdir()} == before


def test_other_labels_and_regions_are_refused(here):
    """The same files and number of heads, but another order or another meaning."""
    kept, data = Store(folder_of(here)), here.preprocessed / DATASET / DATA
    own = json.loads((here.preprocessed / DATASET / "dataset.json").read_text())
    kept.check(data, (3, False), own, kept.header["cases"])
    names = list(own["labels"])
    for labels in ({name: own["labels"][name] for name in reversed(names)}, {**own["labels"], names[-1]: [1, 2]}):
        with pytest.raises(KDError, match=r"was not made from this training's data:\n.*labels: "):
            kept.check(data, (3, False), {**own, "labels": labels}, kept.header["cases"])
    with pytest.raises(KDError, match=r"regions_class_order: None in the store, \[2, 1\] in this training"):
        kept.check(data, (3, False), {**own, "regions_class_order": [2, 1]}, kept.header["cases"])


def test_two_processes_at_once(here, capsys):
    with lock_folder(folder_of(here)):
        assert store() == 1
    assert "Another process works in" in capsys.readouterr().err


def test_an_ensemble_is_the_mean_of_probabilities(here):
    """Of two folds; the second is the same network with other weights."""
    fold = here.model("nnUNetTrainer") / "fold_1"
    fold.mkdir()
    checkpoint = torch.load(here.model("nnUNetTrainer") / "fold_0" / "checkpoint_final.pth", weights_only=False)
    checkpoint["network_weights"] = {
        key: value + 0.05 if value.is_floating_point() else value
        for key, value in checkpoint["network_weights"].items()
    }
    torch.save(checkpoint, fold / "checkpoint_final.pth")
    assert store("-f", "1", "--disable_tta") == 0
    assert store("-f", "0", "--disable_tta", "-o", "first") == 0
    assert store("-f", "0", "1", "--disable_tta") == 0
    case = Store(folder_of(here)).header["cases"][0]
    first, second, both = (
        quantization.decode(blosc2.open(str(folder_of(here, name) / f"{case}.b2nd"))[:])
        for name in ("first", "fold_1", "fold_0_1")
    )
    np.testing.assert_allclose(both, (first + second) / 2, atol=2 * quantization.MAX_ERROR + 1e-5)
    vectors = Store(folder_of(here, "fold_0_1")).vectors(case)
    assert {name.split("/")[0] for name in vectors} == {"0", "1"}


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["-f", "3"], "No teacher: "),
        (["-f", "x"], "-f must be folds, such as 0 1 2 or all, found x"),
        (["-f", "0", "0"], "The same teacher is named twice"),
        (["-c", "2d"], "No teacher: "),
        (["-c", "3d_lowres"], "no configuration '3d_lowres'"),
        (["-p", "Other"], "Plans in this folder: "),
        (["--teacher_folder", "/nowhere"], "/nowhere/plans.json does not exist"),
        (["--teacher_folder", "/nowhere"], "use -tr, -p, -f, -chk, --teacher_folder"),
        (["-device", "cuda"], "This machine has no device cuda. Add: -device cpu"),
    ],
)
def test_refused(here, capsys, monkeypatch, flags, expected):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert store(*flags) == 1
    assert expected in capsys.readouterr().err


def test_what_is_wrong_with_several_teachers_is_reported_at_once(here, capsys):
    assert store("--teacher_folder", "/nowhere", "--teacher_folder", "/neither", "-f", "0", "1") == 1
    error = capsys.readouterr().err
    assert error.count("/nowhere/plans.json does not exist") == error.count("/neither/plans.json does not exist") == 1
