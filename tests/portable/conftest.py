"""An exported folder."""

import shutil

import pytest

from nnunetv2_kd.cli.main import main
from tests.inference.conftest import here  # noqa: F401 - a fixture
from tests.inference.models import make_images, make_model
from tests.untrained_models import make_folders


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """One exported model, and images; to copy."""
    root = tmp_path_factory.mktemp("portable")
    with pytest.MonkeyPatch.context() as patch:
        make_folders(root, patch)
        patch.chdir(root)
        make_model(root / "results")
        make_images(root / "images", labels=root / "labels")
        assert main(["export", "-d", "7", "-o", "out", "--format", "portable"]) == 0
    return root


@pytest.fixture
def copied(exported, tmp_path):
    shutil.copytree(exported / "out", tmp_path / "out")
    return tmp_path / "out"
