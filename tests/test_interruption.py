"""Ctrl-C and SIGTERM, in small processes of their own."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nnunetv2_kd.interruption import CTRL_C, TERMINATED, Terminated, status_of

PARENT = """
import multiprocessing, sys, time
sys.path.insert(0, {root!r})
from nnunetv2_kd.interruption import end_children_with_process, status_of, handle_sigterm_like_ctrl_c

def work():
    import multiprocessing.util
    multiprocessing.util.get_temp_dir()  # as torch does, to hand tensors over
    print("child", multiprocessing.current_process().pid, flush=True)
    time.sleep(600)

if __name__ == "__main__":
    handle_sigterm_like_ctrl_c()
    end_children_with_process()
    child = multiprocessing.get_context("fork").Process(target=work, daemon=True)
    child.start()
    try:
        time.sleep(600)
    except KeyboardInterrupt as error:
        sys.exit(status_of(error))
"""
linux = pytest.mark.skipif(sys.platform != "linux", reason="prctl")


@pytest.fixture
def parent(tmp_path):
    """A process with a data worker; its process id is given with it."""
    file = tmp_path / "parent.py"
    file.write_text(PARENT.format(root=str(Path(__file__).parents[1])))
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    environment = {**os.environ, "TMPDIR": str(temporary)}
    process = subprocess.Popen([sys.executable, file], env=environment, stdout=subprocess.PIPE, text=True)
    child = int(process.stdout.readline().split()[1])
    yield process, child, temporary
    process.kill()
    process.communicate()


def ended(process: int) -> bool:
    for _ in range(600):
        try:
            state = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


@linux
@pytest.mark.parametrize(("sent", "status"), [(signal.SIGTERM, TERMINATED), (signal.SIGINT, CTRL_C)])
def test_an_interruption_has_its_status_and_leaves_no_worker_and_no_folder(parent, sent, status):
    process, child, temporary = parent
    process.send_signal(sent)
    assert process.wait(60) == status
    assert ended(child)
    assert list(temporary.iterdir()) == []


@linux
def test_a_worker_does_not_outlive_a_killed_parent(parent):
    process, child, _ = parent
    process.kill()
    process.wait(60)
    assert ended(child)


def test_status():
    error = KeyboardInterrupt("told")
    error.__cause__ = Terminated()
    assert (status_of(error), status_of(KeyboardInterrupt())) == (143, 130)


LOST = """
import os, signal, sys, time
sys.path.insert(0, {root!r})
from nnunetv2_kd.interruption import status_of, handle_sigterm_like_ctrl_c

handle_sigterm_like_ctrl_c()
os.register_at_fork(after_in_parent=lambda: signal.raise_signal({number}))  # where Python ignores exceptions
try:
    if os.fork() == 0:
        os._exit(0)
    time.sleep(60)
except KeyboardInterrupt as error:
    sys.exit(status_of(error))
"""


@linux
@pytest.mark.parametrize(("sent", "status"), [(signal.SIGTERM, TERMINATED), (signal.SIGINT, CTRL_C)])
def test_an_interruption_right_after_a_fork_is_not_lost(sent, status):
    code = LOST.format(root=str(Path(__file__).parents[1]), number=int(sent))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50)
    assert (done.returncode, done.stderr) == (status, "")
