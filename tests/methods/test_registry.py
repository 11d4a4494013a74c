"""Methods of other packages and of single files."""

import re
import textwrap
from pathlib import Path

import pytest
from pydantic import ValidationError

from nnunetv2_kd.errors import KDError
from nnunetv2_kd.methods import OWN_METHODS
from nnunetv2_kd.methods.registry import find_method, method_names, read_methods, source_of
from nnunetv2_kd.methods.voxel_kl import VoxelKL
from nnunetv2_kd.testing import method_contract

DOCS = Path(__file__).parents[2] / "docs" / "own_method.md"
EXAMPLE = re.findall(r"```python\n(.*?)```", DOCS.read_text(), flags=re.DOTALL)[0]


@pytest.fixture
def in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_losses.py").write_text(EXAMPLE)
    return tmp_path


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Put a distribution with these entry points and files where Python finds it, as pip would."""

    def put(name, entries, **files):
        folder = tmp_path / name
        info = folder / f"{name}-1.2.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
        lines = "\n".join(f"{key} = {value}" for key, value in entries.items())
        (info / "entry_points.txt").write_text(f"[nnunetv2_kd.methods]\n{lines}\n")
        for file, content in files.items():
            (folder / f"{file}.py").write_text(textwrap.dedent(content))
        monkeypatch.syspath_prepend(str(folder))

    return put


def test_a_method_in_a_file_is_checked_like_ours(in_folder):
    methods = read_methods({"my_losses.py:Brier": {"weight": 0.5, "power": 3}, "voxel_kl": {}})
    assert methods["my_losses.py:Brier"].power == 3
    assert isinstance(methods["voxel_kl"], VoxelKL)
    assert str(in_folder / "my_losses.py") in str(source_of("my_losses.py:Brier"))
    assert "SHA-256" in str(source_of("my_losses.py:Brier"))
    with pytest.raises(ValidationError, match="power"):
        read_methods({"my_losses.py:Brier": {"power": 9}})
    with pytest.raises(ValidationError, match="unknown option; my_losses.py:Brier has weight, power"):
        read_methods({"my_losses.py:Brier": {"powr": 2}})


def test_a_method_that_is_named_twice(in_folder):
    (in_folder / "again.py").write_text(EXAMPLE)
    with pytest.raises(ValidationError, match="calls itself 'brier', and so does my_losses.py:Brier: rename one"):
        read_methods({"my_losses.py:Brier": {}, "again.py:Brier": {}})


def brier():
    namespace = {}
    exec(compile(EXAMPLE, str(DOCS), "exec"), namespace)
    return namespace["Brier"]


@method_contract(brier()(), brier()(power=1.5))
def test_the_docs_example_keeps_the_contract(check):
    check()


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("gone.py:Brier", None, "which does not exist"),
        ("broken.py:Brier", "import nowhere_at_all", "ModuleNotFoundError: No module named 'nowhere_at_all'"),
        ("broken.py:Brier", "class Other: pass", "has no class 'Brier'. Its classes: Other"),
        ("broken.py:Brier", "class Brier: pass", "is not a method: expected a subclass of"),
        (
            "broken.py:Brier",
            "from nnunetv2_kd.methods import Method, Needs\nclass Brier(Method):\n    needs = Needs(logits=True)",
            "computes nothing: it has no __call__",
        ),
        (
            "broken.py:Brier",
            "from nnunetv2_kd.methods import Method, Needs\nclass Brier(Method):\n    needs = Needs(features=True)",
            "so it needs the field 'stages': derive from OnStages",
        ),
        (
            "broken.py:Brier",
            "from nnunetv2_kd.methods import Method, Needs\nclass Brier(Method):\n    needs = Needs()",
            "must be a Needs that asks for something",
        ),
        ("voxel_kll", None, "There is no method 'voxel_kll'. Methods: voxel_kl, "),
    ],
)
def test_what_is_no_method_is_named(tmp_path, monkeypatch, name, content, expected):
    monkeypatch.chdir(tmp_path)
    if content is not None:
        (tmp_path / "broken.py").write_text(content)
    with pytest.raises(KDError, match=re.escape(expected)):
        find_method(name)


def test_a_package_registers_a_method(install):
    install("kd_extra", {"brier": "kd_extra_brier:Brier"}, kd_extra_brier=EXAMPLE)
    assert method_names()[-1] == "brier"
    assert read_methods({"brier": {"power": 3}})["brier"].power == 3
    assert str(source_of("brier")) == "The package kd_extra 1.2, kd_extra_brier:Brier"


def test_a_broken_package_stops_only_who_uses_it(install):
    install("kd_broken", {"shaky": "kd_shaky:Shaky"}, kd_shaky="raise RuntimeError('not today')")
    assert list(read_methods({"voxel_kl": {}})) == ["voxel_kl"]
    with pytest.raises(KDError, match=r"The package kd_broken 1\.2, entry point shaky = .*RuntimeError: not today"):
        find_method("shaky")


def test_a_name_that_is_taken_is_refused(install):
    install("kd_taken", {"voxel_kl": "kd_taken_kl:Mine"}, kd_taken_kl=EXAMPLE)
    with pytest.raises(KDError, match=r"kd_taken 1\.2 registers a method named 'voxel_kl'.*pip uninstall kd_taken"):
        find_method("voxel_kl")


def test_two_packages_with_one_name(install):
    install("kd_one", {"brier": "kd_one_brier:Brier"}, kd_one_brier=EXAMPLE)
    install("kd_two", {"brier": "kd_two_brier:Brier"}, kd_two_brier=EXAMPLE)
    with pytest.raises(KDError, match="both register a method named 'brier'"):
        find_method("brier")


def test_options_with_the_name_of_a_keyword(in_folder):
    """Python's keywords are not option names, and are refused like any other unknown name."""
    with pytest.raises(ValidationError, match=r"lambda\n +unknown option; voxel_kl has weight, temperature"):
        read_methods({"voxel_kl": {"lambda": 1}})


def test_our_own_methods_have_names_of_their_own():
    names = [method.name for method in OWN_METHODS]
    assert len(set(names)) == len(names)
