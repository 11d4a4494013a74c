"""Files that are whole or not there; a lock that ends with its process."""

import shutil
import subprocess
import sys
from unittest import mock

import pytest

from nnunetv2_kd.errors import KDError
from nnunetv2_kd.nnunet.files import fingerprint, is_same, locked, write_whole


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
    write_whole(file, b"before")
    with mock.patch("os.fsync", side_effect=OSError(28, "No space left on device")), pytest.raises(OSError):  # noqa: PT011
        write_whole(file, b"afterwards")
    assert file.read_bytes() == b"before"
    assert [f.name for f in tmp_path.iterdir()] == ["a"]


def test_two_at_once_are_refused(tmp_path):
    with locked(tmp_path) as news:
        assert news == ""
        with pytest.raises(KDError, match=r"Another process works in .* on .*process id on host"), locked(tmp_path):
            pass
    with locked(tmp_path) as news:
        assert news == ""


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path):
    code = (
        "import os, sys; from pathlib import Path; from nnunetv2_kd.nnunet.files import locked\n"
        f"with locked(Path({str(tmp_path)!r})): os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    with locked(tmp_path) as news:
        assert "unfinished: going on from there" in news


def test_where_the_file_system_has_no_locks_the_process_id_decides(tmp_path):
    import socket

    with mock.patch("fcntl.flock", side_effect=OSError(95, "Operation not supported")):
        (tmp_path / "lock").write_text(f"1 {socket.gethostname()}\n")  # process 1 always lives
        with pytest.raises(KDError, match=r"works in .*: 1 on "), locked(tmp_path):
            pass
        (tmp_path / "lock").write_text(f"{2**22 + 1} {socket.gethostname()}\n")  # above every process id
        with locked(tmp_path) as news:
            assert "going on" in news
        (tmp_path / "lock").write_text("7 another_host\n")
        with pytest.raises(KDError, match=r"7 on another_host .*If it has ended: rm .*lock"), locked(tmp_path):
            pass


def test_what_was_refused_is_not_unfinished(tmp_path):
    with pytest.raises(KDError, match="no"), locked(tmp_path):
        raise KDError("no")
    with locked(tmp_path) as news:
        assert news == ""
