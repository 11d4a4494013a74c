"""Rooms of the package import in one direction."""

import ast
import sys
from pathlib import Path

import pytest

import nnunetv2_kd

PACKAGE = Path(nnunetv2_kd.__file__).parent
# from the top down: a room may import those on later lines, and not those on its own line or above
ORDER = (
    {"cli"},
    {"demo"},
    {"leaderboard"},
    {"benchmark", "unlabelled", "portable"},
    {"inference", "trainers", "testing"},
    {"distillation"},
    {"teachers", "students"},
    {"methods"},
    {"networks"},
    {"regions"},
    {"tensors"},
    {"nnunet"},
    {"record"},
    {"config"},
    {"formatting", "errors", "discovery", "choices", "terminal", "interruption", "runner"},
    {"version"},
)
LEVELS = {room: level for level, rooms in enumerate(ORDER) for room in rooms}


def imported(file: Path) -> set[str]:
    """Modules of this package that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} if node.module == "nnunetv2_kd" else set()
            found.add(node.module)
    return {name for name in found if name.startswith("nnunetv2_kd.") and not name.endswith(".__version__")}


def room_of(file: Path) -> str:
    return file.relative_to(PACKAGE).with_suffix("").parts[0]


FILES = [file for file in sorted(PACKAGE.rglob("*.py")) if room_of(file) != "__init__"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_rooms_import_downwards(file: Path) -> None:
    room = room_of(file)
    if file.parent.name == "stub":  # nnU-Net imports it by itself; it hands the trainers over
        return
    for module in imported(file):
        other = module.split(".")[1]
        assert other == room or LEVELS[other] > LEVELS[room], f"{room} imports {module}"


def test_every_room_has_its_place() -> None:
    assert {room_of(file) for file in FILES} <= set(LEVELS)


def test_only_the_engine_imports_its_insides() -> None:
    interface = {"nnunetv2_kd.regions"}
    for file in FILES:
        if room_of(file) != "regions":
            inside = {name for name in imported(file) if name.startswith("nnunetv2_kd.regions")} - interface
            assert not inside, f"{file.relative_to(PACKAGE)} imports {inside}"


def test_private_names_stay_in_their_file() -> None:
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("nnunetv2_kd"):
                private = [a.name for a in node.names if a.name.startswith("_") and not a.name.startswith("__")]
                assert not private, f"{file.relative_to(PACKAGE)} imports {private} of {node.module}"


RUNNER_NEEDS = {
    "SimpleITK",
    "highdicom",
    "imageio",
    "nibabel",
    "numpy",
    "onnxruntime",
    "openvino",
    "pydicom",
    "scipy",
    "tifffile",
    "tqdm",
}


@pytest.mark.parametrize("file", [f for f in FILES if room_of(f) == "runner"], ids=lambda file: file.name)
def test_the_runner_imports_what_it_says(file: Path) -> None:
    """It is copied to machines that have neither torch nor nnU-Net nor this package."""
    for node in ast.walk(ast.parse(file.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module or ""]
        for name in {name.split(".")[0] for name in names}:
            assert name in RUNNER_NEEDS or name in sys.stdlib_module_names, f"{file.name} imports {name}"
