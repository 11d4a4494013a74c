"""How nnU-Net finds the trainers, in fresh processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

from nnunetv2_kd import discovery

FIND = (
    "from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name as find; "
    "t = find('nnUNetTrainerRegionKD_7epochs'); print('FOUND', t.__name__, t.__module__)"
)


def run(code, tmp_path, **env):
    environment = {k: v for k, v in os.environ.items() if k != discovery.VARIABLE} | env
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, cwd=tmp_path)


def test_a_fresh_process_finds_it(tmp_path):
    assert "FOUND nnUNetTrainerRegionKD_7epochs nnunetv2_kd.trainers" in run(FIND, tmp_path).stdout


def test_a_spawned_child_finds_it(tmp_path):
    script = tmp_path / "spawn.py"
    script.write_text(
        "import multiprocessing\n"
        "def child(_):\n"
        "    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name as find\n"
        "    return find('nnUNetTrainerKD').__name__\n"
        "if __name__ == '__main__':\n"
        "    with multiprocessing.get_context('spawn').Pool(1) as pool:\n"
        "        print('CHILD', pool.map(child, [0])[0])\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != discovery.VARIABLE}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert "CHILD nnUNetTrainerKD" in done.stdout


def test_an_editable_nnunet_finds_it(tmp_path):
    """nnU-Net imported from a source folder, as pip install -e leaves it."""
    import nnunetv2

    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "nnunetv2").symlink_to(Path(nnunetv2.__path__[0]))
    done = run(f"import nnunetv2; print(nnunetv2.__path__[0]); {FIND}", tmp_path, PYTHONPATH=str(tmp_path / "source"))
    assert str(tmp_path / "source") in done.stdout
    assert "FOUND nnUNetTrainerRegionKD_7epochs" in done.stdout


def test_users_own_folder_stays(tmp_path):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "mine.py").write_text(
        "from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer\nclass Theirs(nnUNetTrainer): pass\n"
    )
    code = FIND.replace("nnUNetTrainerRegionKD_7epochs", "Theirs")
    done = run(code, tmp_path, **{discovery.VARIABLE: str(tmp_path / "theirs")})
    assert "FOUND Theirs mine" in done.stdout


SWITCHES = [discovery.OPT_OUT, "TORCH_DEVICE_BACKEND_AUTOLOAD"]


@pytest.mark.parametrize("switch", SWITCHES)
def test_it_can_be_switched_off(tmp_path, switch):
    done = run(FIND, tmp_path, **{switch: "0"})
    assert done.returncode != 0
    assert "Could not find requested nnunet trainer" in done.stderr


def test_by_hand_where_it_is_switched_off(tmp_path):
    switches = dict.fromkeys(SWITCHES, "0")
    by_hand = run(FIND, tmp_path, **switches, **{discovery.VARIABLE: discovery.STUB_FOLDER})
    assert "FOUND nnUNetTrainerRegionKD_7epochs" in by_hand.stdout


@pytest.mark.parametrize(
    "name", ["nnUNetTrainerRegionKD_0epochs", "nnUNetTrainerRegionKD_2epoch", "nnUNetTrainerNothing"]
)
def test_unknown_trainers_are_still_unknown(monkeypatch, name):
    monkeypatch.setenv(discovery.VARIABLE, discovery.STUB_FOLDER)
    with pytest.raises(RuntimeError, match="Could not find requested nnunet trainer"):
        recursive_find_trainer_class_by_name(name)


def test_register_is_idempotent(monkeypatch):
    monkeypatch.setenv(discovery.VARIABLE, "/theirs")
    discovery.register()
    discovery.register()
    assert os.environ[discovery.VARIABLE] == f"/theirs{os.pathsep}{discovery.STUB_FOLDER}"
    assert discovery.is_registered()


def test_the_hook_imports_nothing_heavy(tmp_path):
    code = (
        "import sys; import nnunetv2_kd.discovery as d; d.register(); "
        "print(sorted(m for m in ('torch', 'numpy', 'nnunetv2', 'pydantic') if m in sys.modules))"
    )
    assert run(code, tmp_path).stdout.strip() == "[]"


def test_the_stub_folder_holds_one_module():
    assert [f.name for f in Path(discovery.STUB_FOLDER).glob("*") if f.name != "__pycache__"] == ["nnunetv2_kd_stub.py"]


def test_nothing_is_written_into_nnunet():
    import nnunetv2

    assert not list(Path(nnunetv2.__path__[0]).rglob("*kd*.py"))
