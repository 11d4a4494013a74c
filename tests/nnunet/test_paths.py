"""Values of nnU-Net's path variables as .env files and Windows' set leave them."""

import subprocess

import pytest

from nnunetv2_kd.cli.doctor import paths
from nnunetv2_kd.errors import KDError
from nnunetv2_kd.nnunet.datasets import trained_dataset
from nnunetv2_kd.nnunet.paths import corrected_path, export_line, mistake_in, problem_of
from nnunetv2_kd.trainers.environment import check_results_folder


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
        (tmp_path / name).mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ('"{}/my results"', "quotes"),
        ("'{}/my results'", "quotes"),
        ("{}/my results ", "spaces"),
        ("~/my results", "begins with ~"),
        ("my results", "is relative"),
    ],
)
def test_what_is_meant(home, monkeypatch, value, message):
    """The command that doctor prints makes the folder that was meant, and no other."""
    value = value.format(home)
    monkeypatch.setenv("nnUNet_results", value)
    assert message in mistake_in(value)
    assert corrected_path(value) == home / "my results"
    (found,) = [finding for finding in paths() if finding.what == "nnUNet_results"]
    assert value in found.found
    assert found.mend == export_line("nnUNet_results", value)
    before = {entry.name for entry in home.iterdir()}
    shell = subprocess.run(
        ["bash", "-c", f'{found.mend} && printf "%s" "$nnUNet_results"'], capture_output=True, text=True
    )
    assert shell.stdout == str(home / "my results")
    assert {entry.name for entry in home.iterdir()} - before == {"my results"}
    monkeypatch.setenv("nnUNet_results", shell.stdout)
    assert not problem_of("nnUNet_results")
    assert all(not finding.mend for finding in paths())


def test_commands_and_trainers_say_so_too(home, monkeypatch):
    monkeypatch.setenv("nnUNet_results", f'"{home}/results"')
    with pytest.raises(KDError, match="has quotes or spaces around its path.*Correct it: export nnUNet_results="):
        trained_dataset("4")
    with pytest.raises(KDError, match="has quotes or spaces around its path"):
        check_results_folder()
    assert sorted(entry.name for entry in home.iterdir()) == ["preprocessed", "raw", "results"]


def test_right_ones_and_a_relative_one_that_is_there(home, monkeypatch):
    assert not mistake_in(str(home))
    monkeypatch.setenv("nnUNet_results", "results")
    assert not problem_of("nnUNet_results")
    check_results_folder()


def test_an_empty_one(home, monkeypatch):
    monkeypatch.setenv("nnUNet_results", "")
    assert problem_of("nnUNet_results").endswith("export nnUNet_results=/path/to/nnUNet_results")
