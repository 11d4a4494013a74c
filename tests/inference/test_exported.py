"""An exported model from a stranger: nothing outside of its folder is read, and nothing that is not listed is run."""

import json

import pytest

from nnunetv2_kd.errors import KDError
from nnunetv2_kd.inference.exported import check_files, exported_folds, is_exported, read_export
from nnunetv2_kd.nnunet.files import sha256
from tests.fuzz.targets import EXPORT


@pytest.fixture
def folder(tmp_path):
    """An export with its files, and a file beside it that must not be read."""
    made = tmp_path / "export"
    (made / "fold_0").mkdir(parents=True)
    for name in ("plans.json", "dataset.json", "fold_0/model.onnx"):
        (made / name).write_text(name)
    (tmp_path / "secret").write_text("secret")
    write(made)
    return made


def write(folder, **change):
    files = {name: sha256(folder / name) for name in ("plans.json", "dataset.json", "fold_0/model.onnx")}
    content = EXPORT | {"files": files} | change
    (folder / "export.json").write_text(json.dumps(content))
    return content


def test_what_is_exported_is_read(folder):
    assert is_exported(folder)
    check_files(folder, read_export(folder))


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "link", "fold_0/../../secret"])
def test_files_outside_are_not_read(folder, name):
    (folder / "link").symlink_to(folder.parent / "secret")
    files = {"plans.json": "", "dataset.json": "", name: sha256(folder.parent / "secret")}
    write(folder, files=files, folds={"0": name})
    with pytest.raises(KDError, match="is not a file in this folder"):
        read_export(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"folds": {"0": "fold_0/other.onnx"}}, "folds: fold_0/other.onnx is not among files"),
        ({"folds": []}, "folds, files: expected names with files"),
        ({"format": "pickle"}, "format: expected one of onnx, openvino, found pickle"),
        ({"format": {}}, "format: expected"),
        ({"precision": 3}, "precision: expected"),
        ({"mirroring_axes": [9]}, "mirroring_axes: expected axes"),
        ({"configuration": None}, "configuration: expected a name"),
    ],
)
def test_contents_of_a_wrong_type(folder, change, message):
    write(folder, **change)
    with pytest.raises(KDError, match=f"export.json is not as nnUNetv2_kd export writes it:(.|\n)*{message}"):
        exported_folds(folder)


@pytest.mark.parametrize("content", ["[]", "{", "null", "3", "{}"])
def test_an_export_json_that_is_none(folder, content):
    (folder / "export.json").write_text(content)
    with pytest.raises(KDError, match="Copy the exported model again, or export it again"):
        is_exported(folder) and read_export(folder)


def test_a_replaced_network_is_reported(folder):
    (folder / "fold_0" / "model.onnx").write_text("another")
    with pytest.raises(KDError, match=r"fold_0/model\.onnx was changed since the export"):
        check_files(folder, read_export(folder))
