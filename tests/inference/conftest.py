import pytest

from tests.untrained_models import make_folders


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Empty folders for nnU-Net's paths, also the current folder of the test."""
    make_folders(tmp_path, monkeypatch)
    monkeypatch.setenv("nnUNet_kd_cache", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path
