"""Locks on folders."""

import errno
import os
import socket
import subprocess
import sys
from unittest import mock

import pytest

from nnunetv2_kd.errors import KDError
from nnunetv2_kd.nnunet.locks import hold_lock, holders, lock_folder

ME = f"{os.getpid()} on {socket.gethostname()}"


def test_one_alone_and_who_it_is(tmp_path):
    file = tmp_path / "lock"
    assert holders(file) == ""
    with hold_lock(file) as others:
        assert others == ""
        with hold_lock(file) as refused:
            assert refused == ME
        assert holders(file) == ME
    assert holders(file) == ""
    assert file.read_text() == ""


def test_readers_together_and_a_writer_alone(tmp_path):
    file = tmp_path / "lock"
    with hold_lock(file, shared=True) as first, hold_lock(file, shared=True) as second, hold_lock(file) as writer:
        assert (first, second) == ("", "")
        assert ME in writer
    with hold_lock(file) as writer, hold_lock(file, shared=True) as reader:
        assert (writer, reader) == ("", ME)


def test_what_a_killed_process_left_holds_nothing(tmp_path):
    file = tmp_path / "lock"
    file.write_text(f"999999999 {socket.gethostname()} alone\n")
    with hold_lock(file) as others:
        assert others == ""


def no_locks(*_):
    raise OSError(errno.ENOLCK, "No locks available")


@pytest.mark.parametrize(
    ("line", "alone", "shared"),
    [
        (f"999999999 {socket.gethostname()} alone\n", True, True),  # has ended
        ("12 elsewhere alone\n", False, False),
        ("12 elsewhere shared\n", False, True),
    ],
)
def test_without_locks_of_the_file_system_the_named_process_decides(tmp_path, monkeypatch, line, alone, shared):
    fcntl = pytest.importorskip("fcntl")
    monkeypatch.setattr(fcntl, "flock", no_locks)
    file = tmp_path / "lock"
    for is_shared, free in ((False, alone), (True, shared)):
        file.write_text(line)
        with hold_lock(file, shared=is_shared) as others:
            assert others == ("" if free else "12 on elsewhere")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_worker_that_lives_on_does_not_hold_it(tmp_path):
    file = tmp_path / "lock"
    (wait, go), (begun, ready) = os.pipe(), os.pipe()
    with hold_lock(file):
        child = os.fork()
        if child == 0:
            os.write(ready, b"x")
            os.read(wait, 1)
            os._exit(0)
        os.read(begun, 1)
    try:
        assert holders(file) == ""
    finally:
        os.write(go, b"x")
        os.waitpid(child, 0)


def test_two_at_once_are_refused(tmp_path):
    with lock_folder(tmp_path) as news:
        assert news == ""
        with (
            pytest.raises(KDError, match=r"Another process works in .* on .*process id on host"),
            lock_folder(tmp_path),
        ):
            pass
    with lock_folder(tmp_path) as news:
        assert news == ""


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path):
    code = (
        "import os, sys; from pathlib import Path; from nnunetv2_kd.nnunet.locks import lock_folder\n"
        f"with lock_folder(Path({str(tmp_path)!r})): os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    with lock_folder(tmp_path) as news:
        assert "unfinished: going on from there" in news


def test_where_the_file_system_has_no_locks_the_process_id_decides(tmp_path):
    with mock.patch("fcntl.flock", side_effect=OSError(95, "Operation not supported")):
        (tmp_path / "lock").write_text(f"1 {socket.gethostname()}\n")  # process 1 always lives
        with pytest.raises(KDError, match=r"works in .*: 1 on "), lock_folder(tmp_path):
            pass
        (tmp_path / "lock").write_text(f"{2**22 + 1} {socket.gethostname()}\n")  # above every process id
        with lock_folder(tmp_path) as news:
            assert "going on" in news
        (tmp_path / "lock").write_text("7 another_host\n")
        with pytest.raises(KDError, match=r"7 on another_host .*If it has ended: rm .*lock"), lock_folder(tmp_path):
            pass


def test_what_was_refused_is_not_unfinished(tmp_path):
    with pytest.raises(KDError, match="no"), lock_folder(tmp_path):
        raise KDError("no")
    with lock_folder(tmp_path) as news:
        assert news == ""
