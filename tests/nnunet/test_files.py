"""Files are complete, or do not exist."""

import shutil
from unittest import mock

import pytest

from nnunetv2_kd.errors import KDError
from nnunetv2_kd.nnunet.files import fingerprint, is_inside, is_same, set_aside, write_atomically, write_text


def test_a_copy_is_the_same_and_a_change_is_not(tmp_path):
    file = tmp_path / "a"
    file.write_bytes(b"content")
    known = fingerprint(file)
    copy = tmp_path / "b"
    shutil.copyfile(file, copy)  # with another time of change: read
    assert is_same(file, known)
    assert is_same(copy, known)
    copy.write_bytes(b"changed")  # as long
    assert not is_same(copy, known)
    copy.write_bytes(b"short")
    assert not is_same(copy, known)
    assert not is_same(tmp_path / "missing", known)


def test_never_half_a_file(tmp_path):
    file = tmp_path / "a"
    write_atomically(file, b"before")
    with mock.patch("os.fsync", side_effect=OSError(28, "No space left on device")), pytest.raises(OSError):  # noqa: PT011
        write_atomically(file, b"afterwards")
    assert file.read_bytes() == b"before"
    assert [f.name for f in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("name", ["a", "b/c", "sub/../a"])
def test_files_that_lie_inside(tmp_path, name):
    assert is_inside(tmp_path, name) == (".." not in name)


@pytest.mark.parametrize(
    "name", ["../a", "/etc/passwd", "", None, 3, "a\0b", "..\\a", "link/secret", "loop/a", "\ud800"]
)
def test_files_that_lie_outside(tmp_path, name):
    (tmp_path / "secret").write_text("")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path)
    (folder / "loop").symlink_to(folder / "loop")
    assert not is_inside(folder, name)


def test_what_cannot_be_written_leaves_what_was_there(tmp_path):
    file = tmp_path / "a"
    write_text(file, "before")
    full = OSError(28, "No space left on device")
    with (
        mock.patch("os.fsync", side_effect=full),
        pytest.raises(KDError, match="No space left.*What was there before is kept"),
    ):
        write_text(file, "afterwards")
    assert file.read_text() == "before"


def test_half_a_character_can_be_written(tmp_path):
    write_text(tmp_path / "a", "\ud800")
    assert (tmp_path / "a").read_text() == "?"


def test_unreadable_files_are_set_aside_and_none_is_lost(tmp_path):
    file = tmp_path / "kd_progress.csv"
    for number in (1, 2):
        file.write_text(str(number))
        assert set_aside(file).endswith(f"was set aside as kd_progress.csv.unreadable{number}")
        assert (tmp_path / f"kd_progress.csv.unreadable{number}").read_text() == str(number)
    with mock.patch("os.replace", side_effect=OSError(1, "Operation not permitted")):
        file.write_text("3")
        assert "can be neither read nor set aside: Operation not permitted" in set_aside(file)
