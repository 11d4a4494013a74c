"""The grid, and a single training, on a SLURM of one node, with what happens to jobs on a cluster: ``make test-slurm``.

`set_up.sh` starts one that nobody else sees. What is tested is what a job is told and does, not how a scheduler shares
out nodes.
"""

import csv
import math
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import BIN, DATASET, World, copy_cases
from tests.waiting import PATIENCE, wait_until

ROOT = Path(__file__).parents[2]
SET_UP = Path(__file__).with_name("set_up.sh")
PROGRAMS = ("slurmctld", "slurmd", "slurmdbd", "munged", "mariadbd")
SBIN = os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin"])
STUDENT = "nnUNetTrainerRegionKD__nnUNetPlans_tenth_s0__3d_fullres"
TINY = yaml.safe_load((ROOT / "workflow" / "config_tiny.yaml").read_text())

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(
        not all(shutil.which(program, path=SBIN) for program in PROGRAMS),
        reason="SLURM is not installed: tests/slurm/set_up.sh --install",
    ),
    pytest.mark.skipif(not (BIN / "snakemake").exists(), reason="pip install '.[workflow]'"),
]


@dataclass
class Cluster:
    folder: Path

    def set_up(self, what: str) -> None:
        subprocess.run([SET_UP, what, self.folder], check=True, stdout=subprocess.DEVNULL)

    def ask(self, *command: str) -> str:
        env = os.environ | {"SLURM_CONF": str(self.folder / "slurm.conf")}
        return subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout.strip()

    def accounted(self, job: str, what: str) -> list[str]:
        """One entry for every time that the job was queued."""
        return self.ask("sacct", "-nXDP", "-j", job, f"--format={what}").splitlines()

    def running(self) -> str:
        """The only job that runs."""
        wait_until(lambda: bool(self.ask("squeue", "-h", "-t", "R", "-o", "%i")), "a job")
        (job,) = self.ask("squeue", "-h", "-t", "R", "-o", "%i").split()
        return job

    def minutes(self, job: str) -> int:
        """Whole ones that it has run for."""
        elapsed = self.ask("squeue", "-h", "-j", job, "-o", "%M").replace("-", ":").split(":")
        return sum(int(part) * 60**place for place, part in enumerate(reversed(elapsed))) // 60

    def wait_for_minutes(self, job: str, minutes: int) -> None:
        wait_until(lambda: self.minutes(job) >= minutes, f"{minutes} minutes")

    def node(self) -> str:
        return self.ask("sinfo", "-h", "-o", "%t").rstrip("*")

    def lose_the_node(self) -> None:
        """Everything on it ends at once, as where its power fails."""
        daemon = int((self.folder / "slurmd.pid").read_text())
        steps = subprocess.run(["pgrep", "slurmstepd"], capture_output=True, text=True).stdout.split()
        for process in [daemon, *(child for step in steps for child in (*_children(int(step)), int(step)))]:
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:  # it has ended because of one before
                continue
        wait_until(lambda: self.node().startswith("down"), "the node is down", 180)


def _children(process: int) -> list[int]:
    found = subprocess.run(["pgrep", "-P", str(process)], capture_output=True, text=True).stdout.split()
    return [grandchild for child in map(int, found) for grandchild in (*_children(child), child)]


@dataclass
class Grid:
    """The tiny grid of a teacher and a student in a folder of its own."""

    cluster: Cluster
    world: World
    config: dict[str, Any]

    def __post_init__(self) -> None:
        root = self.world.root
        (root / "config.yaml").write_text(yaml.safe_dump(self.config))
        profile = (ROOT / "workflow" / "profiles" / "slurm" / "config.yaml").read_text()
        profile = profile.replace('"your_account"', '"kd"').replace('"gpu"', '"cpu"')
        (root / "profile").mkdir(exist_ok=True)
        (root / "profile" / "config.yaml").write_text(profile.replace("latency-wait: 60", "latency-wait: 5"))

    @property
    def environment(self) -> dict[str, str]:
        env = self.world.environment(SLURM_CONF=str(self.cluster.folder / "slurm.conf"))
        del env["nnUNet_n_proc_DA"]
        return env | {"PATH": os.pathsep.join([str(self.cluster.folder / "bin"), str(BIN), SBIN])}

    def start(self, *flags: str) -> subprocess.Popen[bytes]:
        intervals = ["--slurm-init-seconds-before-status-checks", "5", "--seconds-between-status-checks", "5"]
        command = ["snakemake", "-s", ROOT / "workflow" / "Snakefile", "--profile", "profile", *intervals]
        with (self.world.root / "printed.txt").open("ab") as printed:
            return subprocess.Popen(
                [*command, "--configfile", "config.yaml", *flags],
                env=self.environment,
                cwd=self.world.root,
                stdout=printed,
                stderr=subprocess.STDOUT,
            )

    @property
    def printed(self) -> str:
        return (self.world.root / "printed.txt").read_text()

    def run(self, *flags: str) -> int:
        return self.start(*flags).wait(PATIENCE)

    def train(self, *flags: str) -> int:
        return self.run("--until", "train_student", *flags)

    @property
    def fold(self) -> Path:
        return self.world.results / DATASET / STUDENT / "fold_0"

    def epochs(self) -> list[int]:
        """That the student has trained, as its curves have them."""
        file = self.fold / "kd_progress.csv"
        if not file.is_file():
            return []
        with file.open() as stream:
            return [int(float(row["epoch"])) for row in csv.DictReader(stream)]

    def begun(self) -> list[list[int]]:
        """Epochs that every start of the training began, the earliest start first."""
        logs = sorted(self.fold.glob("training_log_*.txt"), key=lambda log: log.stat().st_mtime)
        return [[int(number) for number in re.findall(r": Epoch (\d+)", log.read_text())] for log in logs]

    def wait_for_epochs(self, count: int) -> None:
        wait_until(lambda: len(self.epochs()) >= count, f"{count} epochs")

    def is_whole(self, epochs: int) -> bool:
        """Every epoch once, in order, and a validation."""
        return self.epochs() == list(range(epochs)) and (self.fold / "validation" / "summary.json").is_file()


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    found = Cluster(tmp_path_factory.mktemp("slurm"))
    try:
        found.set_up("start")
        yield found
    finally:
        found.set_up("stop")


def config(epochs: int, **training: object) -> dict[str, Any]:
    """The tiny grid with one student, and with even smaller networks."""
    short = {"epochs": epochs, "iterations_per_epoch": 2, "val_iterations_per_epoch": 1, "save_every": 1000} | training
    size = {"width": 0.1, "batch_size": 2}
    teacher = {"student": {"width": 0.1}, "seed": 0} | short | {"epochs": 1}
    return TINY | {
        "teachers": {"small": {"trainer": "nnUNetTrainerKDBaseline", "options": teacher}},
        "methods": {"region": TINY["methods"]["region"]},
        "sizes": {"tenth": size},
        "seeds": [0],
        "retries": 0,
        "training": short,
    }


@pytest.fixture(scope="session")
def finished(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Grid:
    """The grid from nothing; the status of its end is a test's business."""
    world = World(tmp_path_factory.mktemp("finished"))
    for folder in (world.raw, world.preprocessed, world.results):
        folder.mkdir()
    copy_cases(world.raw, DATASET, 6)
    grid = Grid(cluster, world, config(epochs=2))
    grid.run()
    return grid


@pytest.fixture
def grid_of(finished: Grid, tmp_path: Path) -> Callable[..., Grid]:
    """The same grid with its student, of another length, still to be trained; without the leaderboard."""

    def make(epochs: int, **changes: object) -> Grid:
        world = World(tmp_path / "world")
        assert finished.is_whole(2), "the grid itself does not run: see the first test"
        for folder in ("raw", "preprocessed", "results"):
            shutil.copytree(finished.world.root / folder, world.root / folder)
        shutil.rmtree(world.results / DATASET / STUDENT)
        return Grid(finished.cluster, world, config(epochs) | changes)

    return make


@pytest.fixture(scope="session")
def seconds_per_epoch(finished: Grid) -> float:
    """Of the student."""
    log = next(finished.fold.glob("training_log_*.txt")).read_text()
    return min(float(seconds) for seconds in re.findall(r"Epoch time: ([\d.]+) s", log))


def epochs_of(seconds: float, each: float) -> int:
    """Enough for a training of that length, however fast the machine is."""
    return max(12, math.ceil(seconds / each))


def test_from_nothing_to_the_leaderboard(finished):
    assert "steps (100%) done" in finished.printed, finished.printed
    assert (finished.world.root / "kd_grid_tiny" / "leaderboard" / DATASET / "index.html").is_file()
    assert finished.is_whole(2)
    jobs = re.findall(r"submitted with SLURM jobid (\d+)", finished.printed)
    assert len(jobs) == 4  # preprocess, teacher, student, leaderboard
    assert {state for job in jobs for state in finished.cluster.accounted(job, "State")} == {"COMPLETED"}
    assert {memory for job in jobs for memory in finished.cluster.accounted(job, "ReqMem")} == {"4000M"}


def test_a_cancelled_job_ends_the_grid_and_the_same_command_goes_on(grid_of, cluster):
    grid = grid_of(epochs=12)
    snakemake = grid.start("--until", "train_student", "--slurm-status-command", "sacct")
    grid.wait_for_epochs(3)
    job = cluster.running()
    cluster.ask("scancel", job)
    assert snakemake.wait(PATIENCE) != 0
    assert re.fullmatch(r"CANCELLED by \d+", cluster.accounted(job, "State")[0])
    assert f"SLURM-job '{job}' failed, SLURM status is: 'CANCELLED'" in grid.printed
    saved = len(grid.epochs())
    assert grid.train() == 0, grid.printed
    assert grid.is_whole(12)
    assert grid.begun()[1][0] >= saved - 1


def test_a_time_limit_that_is_hit_costs_no_epoch(grid_of, cluster, seconds_per_epoch):
    """The limit is set while the training runs, to a minute that is over."""
    epochs = epochs_of(120, seconds_per_epoch)
    grid = grid_of(epochs, retries=1)
    snakemake = grid.start("--until", "train_student")
    grid.wait_for_epochs(3)
    job = cluster.running()
    cluster.wait_for_minutes(job, 1)
    cluster.ask("scontrol", "update", f"JobId={job}", "TimeLimit=1")
    assert snakemake.wait(PATIENCE) == 0, grid.printed
    assert cluster.accounted(job, "State") == ["TIMEOUT"]
    again = re.findall(r"submitted with SLURM jobid (\d+)", grid.printed)[-1]
    assert cluster.accounted(again, "State") == ["COMPLETED"]
    assert grid.is_whole(epochs)
    before, after = grid.begun()
    assert after[0] == before[-1], "only the epoch that was cut off is trained again"


def test_a_node_that_goes_down_and_comes_back(grid_of, cluster):
    grid = grid_of(epochs=12)
    snakemake = grid.start("--until", "train_student")
    grid.wait_for_epochs(3)
    job = cluster.running()
    cluster.lose_the_node()
    cluster.set_up("node")
    assert snakemake.wait(PATIENCE) == 0, grid.printed
    assert cluster.accounted(job, "State") == ["NODE_FAIL", "COMPLETED"]
    assert grid.is_whole(12)


def test_a_job_that_queues_itself_again(grid_of, cluster, seconds_per_epoch):
    """The lines of docs/training.md; and an administrator who queues the job again."""
    epochs = epochs_of(240, seconds_per_epoch)
    grid = grid_of(epochs)
    assert grid.run("--until", "plan_student", "options") == 0, grid.printed
    lines = re.search(r"```bash\n(#SBATCH --requeue.*?)```", (ROOT / "docs" / "training.md").read_text(), re.S)[1]
    lines = lines.replace("--c\n", "--c -p nnUNetPlans_tenth_s0 -device cpu\n")
    script = grid.world.root / "train.sh"
    script.write_text(f"#!/bin/bash\n#SBATCH --time=60 --account=kd --mem=4000 --output=job.txt\n{lines}")
    (options,) = (grid.world.root / "kd_grid_tiny" / "options" / DATASET).glob("nnUNetTrainerRegionKD*.yaml")
    env = grid.environment | {"nnUNet_kd_config": str(options)}
    sbatch = ["sbatch", "--parsable", script]
    done = subprocess.run(sbatch, env=env, cwd=grid.world.root, capture_output=True, text=True, check=True)
    job = done.stdout.strip()
    grid.wait_for_epochs(2)
    cluster.ask("scontrol", "requeue", job)
    wait_until(lambda: _goes_on(cluster, job) and len(grid.begun()) == 2 and len(grid.begun()[1]) > 1, "it goes on")
    limit = 3 + cluster.minutes(job)  # SLURM sends SIGTERM two minutes before
    cluster.ask("scontrol", "update", f"JobId={job}", f"TimeLimit={limit}")
    wait_until(lambda: _goes_on(cluster, job) and len(grid.begun()) == 3, "it queues itself again")
    cluster.ask("scontrol", "update", f"JobId={job}", "TimeLimit=60")  # it would queue itself once more
    wait_until(lambda: not _goes_on(cluster, job), "its end")
    printed = (grid.world.root / "job.txt").read_text()
    assert cluster.accounted(job, "State")[-1] == "COMPLETED", printed
    assert len(cluster.accounted(job, "State")) == 3  # the administrator's, its own, the last
    assert grid.is_whole(epochs)
    first, second, third = grid.begun()
    assert second[0] == first[-1]
    assert third[0] == second[-1]


def _goes_on(cluster: Cluster, job: str) -> bool:
    """Whether a job runs or waits. SLURM lets one that is queued again wait for two minutes; one that is started in the
    second in which it was cancelled is killed: "Job credential revoked"."""
    state = cluster.ask("squeue", "-h", "-t", "all", "-j", job, "-o", "%T")
    return state in ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "REQUEUED")
