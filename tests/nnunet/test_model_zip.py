"""Zips of strangers: nothing is written or read outside of the folder that they are unpacked into."""

import json
import stat
import zipfile
from types import SimpleNamespace

import pytest
import torch

from nnunetv2_kd.errors import KDError
from nnunetv2_kd.nnunet.model_zip import unpack

MODEL = "Dataset007_X/nnUNetTrainer__nnUNetPlans__3d_fullres"


@pytest.fixture
def made(tmp_path):
    def make(more=(), change=lambda content: content):
        checkpoint = tmp_path / "c.pth"
        torch.save({"a": torch.ones(50)}, checkpoint)
        file = tmp_path / "model.zip"
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(f"{MODEL}/plans.json", json.dumps({"a": 1}))
            archive.writestr(f"{MODEL}/fold_0/checkpoint_final.pth", checkpoint.read_bytes())
            for name, content in more:
                archive.writestr(name, content)
        file.write_bytes(change(file.read_bytes()))
        return file

    return make


def unpacked(file):
    return unpack(file, "3d_fullres", 0, "checkpoint_final.pth")


def test_a_model_is_unpacked(made):
    assert unpacked(made()).checkpoint.is_file()


@pytest.mark.parametrize(
    "name",
    ["../evil", "/tmp/evil_of_a_zip", f"{MODEL}/../../evil", "..\\evil", "C:\\evil", f"../x/{MODEL}/plans.json"],
)
def test_names_that_lead_out_are_refused(made, tmp_path, name):
    with pytest.raises(KDError, match="would be unpacked outside of the folder"):
        unpacked(made([(name, "{}")]))
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["c.pth", "model.zip"]


def test_links_are_refused(made):
    link = zipfile.ZipInfo(f"{MODEL}/dataset.json")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with pytest.raises(KDError, match="would be unpacked outside of the folder"):
        unpacked(made([(link, "/etc/passwd")]))


def test_what_would_fill_the_disk_is_refused(made, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda place: SimpleNamespace(free=10))
    with pytest.raises(KDError, match=r"it unpacks to \d+ bytes, and .* has 10 left"):
        unpacked(made())


def test_a_damaged_zip(made):
    def flip(content):
        changed = bytearray(content)
        for place in range(300, 500):
            changed[place] ^= 255
        return bytes(changed)

    with pytest.raises(KDError, match=r"model\.zip"):
        unpacked(made(change=flip))
    with pytest.raises(KDError, match="cannot be unpacked"):
        unpacked(made(change=lambda content: content[: len(content) // 2]))
