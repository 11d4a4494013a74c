import os
import subprocess
import sys
import time

import pytest

from nnunetv2_kd.inference import cache

KEY = {"what": "test", "number": 1}


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_kd_cache", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write(text):
    calls = []

    def make(folder):
        calls.append(folder)
        (folder / "file").write_text(text)

    make.calls = calls
    return make


def test_made_once_per_key(root):
    make = write("content")
    first = cache.get_or_make(KEY, make)
    assert cache.get_or_make(dict(reversed(KEY.items())), make) == first
    assert len(make.calls) == 1
    assert (first / "file").read_text() == "content"
    other = cache.get_or_make(KEY | {"number": 2}, write("other"))
    assert other != first
    assert sorted(root.iterdir()) == sorted([first, other])


@pytest.mark.parametrize("damage", ["cut", "gone", "no record"])
def test_what_is_damaged_is_made_again(root, damage):
    entry = cache.get_or_make(KEY, write("content"))
    if damage == "cut":
        (entry / "file").write_text("cont")
    elif damage == "gone":
        (entry / "file").unlink()
    else:
        (entry / cache.ABOUT).write_text("{")
    again = write("content")
    assert cache.get_or_make(KEY, again) == entry
    assert len(again.calls) == 1
    assert (entry / "file").read_text() == "content"


def test_nothing_is_left_of_what_fails(root):
    def make(folder):
        (folder / "half").write_text("half")
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        cache.get_or_make(KEY, make)
    assert list(root.iterdir()) == []


def test_what_killed_processes_have_left(root):
    entry = cache.get_or_make(KEY, write("content"))
    old, new, users = root / f"{entry.name}.x1", root / f"{entry.name}.x2", root / "my.folder"
    for folder in (old, new, users):
        folder.mkdir()
        (folder / "file").write_text("half")
    for folder in (old, entry, users):
        os.utime(folder, (0, time.time() - 2 * cache.DAY))
    other = cache.get_or_make(KEY | {"number": 2}, write("other"))
    assert sorted(root.iterdir()) == sorted([entry, other, new, users])


def test_another_process_was_first(root):
    def make(folder):
        if not first.calls:
            cache.get_or_make(KEY, first)
        (folder / "file").write_text("second")

    first = write("first")
    entry = cache.get_or_make(KEY, make)
    assert (entry / "file").read_text() == "first"
    assert list(root.iterdir()) == [entry]


def test_two_processes_at_once(root, tmp_path):
    script = (
        "import sys, time\n"
        "from nnunetv2_kd.inference.cache import get_or_make\n"
        "def make(folder):\n"
        "    (folder / 'file').write_text('content')\n"
        "    time.sleep(0.3)\n"
        "print(get_or_make({'k': 1}, make))\n"
    )
    started = [
        subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=os.environ.copy())
        for _ in range(2)
    ]
    outputs = {process.communicate(timeout=300)[0].strip() for process in started}
    assert [process.returncode for process in started] == [0, 0]
    assert len(outputs) == 1
    assert [entry.name for entry in root.iterdir()] == [os.path.basename(outputs.pop())]


def test_nowhere_to_write(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("nnUNet_kd_cache", str(tmp_path / "file" / "cache"))
    entry = cache.get_or_make(KEY, write(str(time.time())))
    assert (entry / "file").is_file()
    assert tmp_path not in entry.parents
    assert cache.get_or_make(KEY, lambda folder: pytest.fail("made again")) == entry


def test_a_temporary_cache_goes_with_its_process(tmp_path):
    (tmp_path / "file").write_text("")
    script = (
        "from nnunetv2_kd.inference.cache import get_or_make\n"
        "print(get_or_make({'k': 1}, lambda folder: (folder / 'file').write_text('content')))"
    )
    environment = os.environ | {"nnUNet_kd_cache": str(tmp_path / "file" / "cache"), "TMPDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert done.stdout.startswith(str(tmp_path / "nnunetv2_kd_")), done.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["file"]
