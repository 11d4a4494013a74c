"""Real cases, tiny networks, nnU-Net's own commands."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import yaml
from filelock import FileLock

from tests.in_process import run_in_process

DATA = Path(__file__).parents[1] / "nnunetv2_kd" / "demo" / "data"
DATASET = "Dataset004_Hippocampus"
ONE_PROCESSOR = Path(__file__).parent / "one_processor"
BIN = Path(sys.executable).parent
LOG = "printed.txt"  # what the command that made a world printed
os.environ |= {"nnUNet_def_n_proc": "1"}  # read when nnU-Net is imported
TINY = {"epochs": 2, "iterations_per_epoch": 3, "val_iterations_per_epoch": 1, "seed": 0, "optimizer": "nnunet"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run files with commands first: one of them takes minutes, and the other workers should not have to wait for it at
    the end."""
    slow = {item.path for item in items if "commands" in item.keywords}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(autouse=True)
def _few_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@dataclass
class World:
    """One nnU-Net installation's three folders, and a way to run commands in it."""

    root: Path
    env: dict[str, str] = field(default_factory=dict)
    log: str = ""

    @property
    def raw(self) -> Path:
        return self.root / "raw"

    @property
    def preprocessed(self) -> Path:
        return self.root / "preprocessed"

    @property
    def results(self) -> Path:
        return self.root / "results"

    def environment(self, **extra: str) -> dict[str, str]:
        return {
            **os.environ,
            "nnUNet_raw": str(self.raw),
            "nnUNet_preprocessed": str(self.preprocessed),
            "nnUNet_results": str(self.results),
            "nnUNet_n_proc_DA": "0",
            "nnUNet_def_n_proc": "1",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ONE_PROCESSOR),
            "PYTHONWARNINGS": "ignore",
            **self.env,
            **extra,
        }

    def run(
        self, *command: str | Path, check: bool = True, installed: bool = False, validate: bool = True, **env: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a command; with ``check`` a failure shows what it printed.

        Args:
            installed: as a process of its own, as a user starts it; otherwise what it does, in this process, which
                saves it the imports. One test of every command and kind of trainer starts it for real.
            validate: see `run_in_process`.
        """
        program, *arguments = (str(part) for part in command)
        if installed:
            executable = str(BIN / program) if (BIN / program).exists() else program
            done = subprocess.run(
                [executable, *arguments], env=self.environment(**env), capture_output=True, text=True, cwd=self.root
            )
        else:
            done = run_in_process(program, arguments, self.environment(**env), self.root, validate)
        if check and done.returncode != 0:
            pytest.fail(f"{' '.join([program, *arguments])} failed:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
        return done

    def options(self, name: str = "options", **options: object) -> Path:
        file = self.root / f"{name}.yaml"
        file.write_text(yaml.safe_dump({**TINY, **options}))
        return file

    def train(
        self,
        trainer: str,
        *arguments: str,
        dataset: str = "4",
        configuration: str = "3d_fullres",
        fold: str = "0",
        check: bool = True,
        installed: bool = False,
        validate: bool = True,
        env: dict[str, str] | None = None,
        **options: object,
    ) -> subprocess.CompletedProcess[str]:
        file = self.options(**options)
        return self.run(
            "nnUNetv2_train",
            dataset,
            configuration,
            fold,
            "-tr",
            trainer,
            "-device",
            "cpu",
            *arguments,
            check=check,
            installed=installed,
            validate=validate,
            nnUNet_kd_config=str(file),
            **(env or {}),
        )

    def model(
        self, trainer: str, plans: str = "nnUNetPlans", configuration: str = "3d_fullres", dataset: str = DATASET
    ) -> Path:
        return self.results / dataset / f"{trainer}__{plans}__{configuration}"

    def plans_file(self, name: str = "nnUNetPlans", dataset: str = DATASET) -> Path:
        return self.preprocessed / dataset / f"{name}.json"


def make_tiny(plans_file: Path, features: int = 4, batch_size: int = 2) -> None:
    """Cut every network of a plans file down to a size that trains in no time."""
    plans = json.loads(plans_file.read_text())
    for configuration in plans["configurations"].values():
        if "architecture" in configuration:
            kwargs = configuration["architecture"]["arch_kwargs"]
            kwargs["features_per_stage"] = [features * min(2**i, 4) for i in range(kwargs["n_stages"])]
            depth = "n_conv_per_stage" if "n_conv_per_stage" in kwargs else "n_blocks_per_stage"
            kwargs[depth] = [1] * kwargs["n_stages"]
            kwargs["n_conv_per_stage_decoder"] = [1] * (kwargs["n_stages"] - 1)
        if "patch_size" in configuration:
            configuration["patch_size"] = {2: [32, 32], 3: [16, 24, 16]}[len(configuration["patch_size"])]
            configuration["batch_size"] = batch_size
    plans_file.write_text(json.dumps(plans))


def copy_cases(raw: Path, name: str, count: int, change: Callable[[dict], None] | None = None) -> Path:
    """A raw dataset of the first bundled cases."""
    folder = raw / name
    cases = sorted(f.name.removesuffix(".nii.gz") for f in (DATA / "labelsTr").glob("*.nii.gz"))[:count]
    for part, suffix in (("imagesTr", "_0000"), ("labelsTr", "")):
        (folder / part).mkdir(parents=True)
        for case in cases:
            shutil.copyfile(DATA / part / f"{case}{suffix}.nii.gz", folder / part / f"{case}{suffix}.nii.gz")
    dataset_json = json.loads((DATA / "dataset.json").read_text()) | {"numTraining": count}
    if change is not None:
        change(dataset_json)
    (folder / "dataset.json").write_text(json.dumps(dataset_json))
    return folder


@contextmanager
def fewer_intensities() -> Iterator[None]:
    """nnU-Net draws 10**8 foreground voxels for a fingerprint, however few there are, and for MRI uses none."""
    from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor

    plain = DatasetFingerprintExtractor.collect_foreground_intensities

    def few(segmentation: Any, images: Any, num_samples: int) -> Any:
        return plain(segmentation, images, num_samples=min(num_samples, 10_000))

    with mock.patch.object(DatasetFingerprintExtractor, "collect_foreground_intensities", few):
        yield


def preprocess(world: World, dataset_id: str, name: str, configurations: tuple[str, ...] = ("3d_fullres",)) -> None:
    """nnU-Net's own planning and preprocessing; networks made tiny in between."""
    with fewer_intensities():
        world.run("nnUNetv2_extract_fingerprint", "-d", dataset_id, "-np", "1", nnUNet_n_proc_DA="1")
    world.run("nnUNetv2_plan_experiment", "-d", dataset_id, nnUNet_n_proc_DA="1")
    make_tiny(world.plans_file(dataset=name))
    world.run("nnUNetv2_preprocess", "-d", dataset_id, "-c", *configurations, "-np", *["1"] * len(configurations))


def made_once(tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """A folder that all of pytest-xdist's workers share, made by the first one that needs it.

    Args:
        make: called with the folder, which does not exist yet.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    done = folder.with_suffix(".done")
    with FileLock(folder.with_suffix(".lock")):
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)  # of a worker that failed
            make(folder)
            done.touch()
    return folder


def make_trained_world(root: Path) -> None:
    world = World(root)
    copy_cases(world.raw, DATASET, 6)
    preprocess(world, "4", DATASET, ("2d", "3d_fullres"))
    world.train("nnUNetTrainerKDBaseline", student={"width": 1.0})
    baseline = world.model("nnUNetTrainerKDBaseline")
    baseline.rename(world.model("nnUNetTrainer"))


@pytest.fixture(scope="session")
def trained_world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Preprocessed hippocampus with a tiny trained teacher of fold 0. Do not write to it: use `world`."""
    return World(made_once(tmp_path_factory, "trained_world", make_trained_world))


def copy_of(world: World, root: Path) -> World:
    """Copy a world. It has only a few MB, and with links a test that changes a file would change the original."""
    shutil.copytree(world.root, root)
    return World(root, log=world.log)


@pytest.fixture
def world(trained_world: World, tmp_path: Path) -> World:
    """A copy of `trained_world` for one test."""
    return copy_of(trained_world, tmp_path / "world")


@pytest.fixture(scope="session")
def stored_trained_world(trained_world: World, tmp_path_factory: pytest.TempPathFactory) -> World:
    """`trained_world` with its teacher's predictions stored by the command. Do not write to it: use `stored_world`."""

    def make(root: Path) -> None:
        world = copy_of(trained_world, root)
        log = world.run("nnUNetv2_kd", "store", "-d", "4", "-device", "cpu", installed=True).stdout
        (root / LOG).write_text(log)

    return with_log(made_once(tmp_path_factory, "stored_trained_world", make))


def with_log(root: Path) -> World:
    """A world, and the output of the command that made it."""
    return World(root, log=(root / LOG).read_text())


@pytest.fixture
def stored_world(stored_trained_world: World, tmp_path: Path) -> World:
    """A copy of `stored_trained_world` for one test."""
    return copy_of(stored_trained_world, tmp_path / "stored_world")


@pytest.fixture(scope="session")
def stock_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python with everything that is installed here except this package."""
    environment = tmp_path_factory.mktemp("stock") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    target = next(environment.glob("lib/python*/site-packages"))
    for entry in Path(sysconfig.get_paths()["purelib"]).iterdir():
        if "nnunetv2_kd" not in entry.name and not (target / entry.name).exists():
            (target / entry.name).symlink_to(entry)
    python = environment / "bin" / "python"
    done = subprocess.run([python, "-c", "import nnunetv2_kd"], capture_output=True, text=True, cwd=environment)
    assert "No module named 'nnunetv2_kd'" in done.stderr
    return python
