"""What a user installs."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import nnunetv2_kd
from nnunetv2_kd.demo.run import DATA
from tests.conftest import made_once
from tests.discovery.test_discovery import FIND

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    def make(folder):
        command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT)]
        subprocess.run(command, check=True)

    return next(made_once(tmp_path_factory, "wheel", make).glob("*.whl"))


@pytest.mark.commands
def test_the_wheel_holds_everything(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert "nnunetv2_kd/discovery/stub/nnunetv2_kd_stub.py" in names
    assert "nnunetv2_kd/demo/options/student.yaml" in names
    images = [name for name in names if name.endswith("_0000.nii.gz")]
    assert len(images) == len(list(DATA.rglob("*_0000.nii.gz")))
    assert not any(name.startswith("tests/") for name in names)


@pytest.mark.commands
def test_the_installed_wheel_is_found(wheel, stock_python, tmp_path):
    """Unpacked into a Python that does not have the package, as pip would."""
    site_packages = next(stock_python.parents[1].glob("lib/python*/site-packages"))
    with zipfile.ZipFile(wheel) as archive:
        unpacked = [site_packages / name for name in {name.split("/")[0] for name in archive.namelist()}]
        archive.extractall(site_packages)
    environment = {key: value for key, value in os.environ.items() if key != "nnUNet_extTrainer"}
    try:
        done = subprocess.run([stock_python, "-c", FIND], env=environment, capture_output=True, text=True, cwd=tmp_path)
    finally:
        for folder in unpacked:  # other tests need this Python without the package
            subprocess.run(["rm", "-rf", str(folder)], check=True)
    assert "FOUND nnUNetTrainerRegionKD_7epochs nnunetv2_kd.trainers" in done.stdout, done.stderr


def test_importing_the_package_does_not_import_torch(tmp_path):
    code = "import sys, nnunetv2_kd; print(nnunetv2_kd.__version__, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.split() == [nnunetv2_kd.__version__, "False"]
