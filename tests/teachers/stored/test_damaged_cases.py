"""Preprocessed cases that no training could use, and a disk that is full when a store is replaced."""

import json
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest

from nnunetv2_kd.errors import KDError
from nnunetv2_kd.teachers.stored import write
from tests.fuzz.targets import CASE, HEADER


def task(folder):
    labels = SimpleNamespace(all_labels=[0, 1, 2], ignore_label=None)
    manager = SimpleNamespace(dataset_name="Dataset004_X", plans_name="nnUNetPlans")
    return SimpleNamespace(
        folder=folder, data=folder, manager=manager, label_manager=labels, configuration="3d_fullres"
    )


def case(image=0.0, label=1, size=4):
    segmentation = np.full((1, 4, 4, size), label, np.int16)
    return mock.Mock(load_case=lambda name: (np.full((1, 4, 4, 4), image, np.float32), segmentation, None, {}))


def test_a_case_that_is_well(tmp_path):
    image, segmentation, _ = write._load(task(tmp_path), case(label=-1), "x")
    assert image.shape == (1, 4, 4, 4)
    assert (segmentation == -1).all()


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (mock.Mock(load_case=mock.Mock(side_effect=EOFError)), r"cannot be read \(EOFError\)"),
        (mock.Mock(load_case=mock.Mock(side_effect=RuntimeError("blosc2"))), r"cannot be read \(RuntimeError\)"),
        (case(image=np.nan), "image contains values that are not finite"),
        (case(label=7), r"labels that dataset\.json does not have: \[7\]"),
        (case(size=5), "image and segmentation differ in size"),
    ],
    ids=["empty", "cut", "not finite", "a label 7", "sizes"],
)
def test_a_case_that_cannot_be_used_is_reported_with_the_line_that_mends_it(tmp_path, dataset, message):
    with pytest.raises(KDError, match=rf"{message}.*Preprocess it again: nnUNetv2_preprocess -d 4 -c 3d_fullres"):
        write._load(task(tmp_path), dataset, "x")


def test_a_store_is_whole_until_the_next_one_is_on_the_disk(tmp_path):
    (tmp_path / "store.json").write_text(json.dumps(HEADER))
    (tmp_path / "x.json").write_text(json.dumps(CASE))
    with (
        mock.patch("os.fsync", side_effect=OSError(28, "No space left on device")),
        pytest.raises(OSError, match="space"),
    ):
        write._prepare(task(tmp_path), HEADER | {"command": "another"}, overwrite=True)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["store.json", "x.json"]
    write._prepare(task(tmp_path), HEADER | {"command": "another"}, overwrite=True)
    assert [file.name for file in tmp_path.iterdir()] == ["store.json"]
    assert json.loads((tmp_path / "store.json").read_text())["command"] == "another"
