"""SIGKILL at random moments of a training, a store, a leaderboard and an export, then the same command again.

``python -m tests.soak.kills 50 5`` kills trainings fifty times and each of the others five times, and prints what was
lost. Each command is a process of its own,
forked from one that has imported everything, so that most moments fall into work and not into imports.
"""

import argparse
import csv
import json
import multiprocessing
import os
import random
import re
import signal
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from nnunetv2_kd.nnunet.files import sha256
from tests.conftest import DATASET, World, copy_of, make_trained_world

TRAINER = "nnUNetTrainerRegionKD"
EPOCHS, SAVE_EVERY = 5, 2
OPTIONS = {"epochs": EPOCHS, "iterations_per_epoch": 3, "save_every": SAVE_EVERY}
TOLERANCE = 1e-5
PATIENCE = 1200.0  # seconds for one command


class Command:
    """A command in a process of its own.

    Args:
        world: whose folders it works in.
        call: of its console script.
        arguments: as they are typed, the program first.
    """

    def __init__(self, world: World, call: Callable[[], object], arguments: Sequence[str]) -> None:
        self.printed = world.root / "printed.txt"
        self.began = time.monotonic()
        self.process = os.fork()
        if self.process == 0:
            os.setsid()
            _become(world, arguments)
            status = 1
            try:
                status = int(call() or 0)
            finally:
                os._exit(status)

    def kill_after(self, seconds: float) -> bool:
        """Whether it was still at work then."""
        time.sleep(seconds)
        os.kill(self.process, signal.SIGKILL)
        return os.WIFSIGNALED(os.waitpid(self.process, 0)[1])

    def wait(self) -> float:
        """Seconds that it took; it ended well."""
        while time.monotonic() - self.began < PATIENCE:
            ended, status = os.waitpid(self.process, os.WNOHANG)
            if ended:
                code = os.waitstatus_to_exitcode(status)
                assert code == 0, f"ended with {code}: {self.printed.read_text()[-2000:]}"
                return time.monotonic() - self.began
            time.sleep(0.05)
        os.kill(self.process, signal.SIGKILL)
        raise AssertionError(f"hangs for more than {PATIENCE:.0f} s")


def _become(world: World, arguments: Sequence[str]) -> None:
    os.environ |= world.environment(nnUNet_kd_config=str(world.root / "options.yaml"))
    os.chdir(world.root)
    sys.argv = list(arguments)
    out = os.open(world.root / "printed.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)
    torch.set_num_threads(1)
    multiprocessing.cpu_count = lambda: 1


def training(world: World, resumes: bool = False) -> Command:
    from nnunetv2.run.run_training import run_training_entry

    world.options(**OPTIONS)
    flags = ["--c"] if resumes else []
    line = ["nnUNetv2_train", "4", "3d_fullres", "0", "-tr", TRAINER, "-device", "cpu", *flags]
    return Command(world, run_training_entry, line)


def of_kd(world: World, *arguments: str) -> Command:
    from nnunetv2_kd.cli.main import main

    world.options(**OPTIONS)
    return Command(world, lambda: main(arguments), ["nnUNetv2_kd", *arguments])


def fold(world: World) -> Path:
    return world.model(TRAINER) / "fold_0"


def curve(world: World) -> list[dict[str, float]]:
    with (fold(world) / "kd_progress.csv").open() as stream:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(stream)]


def done_epochs(world: World) -> int:
    """That the last checkpoint holds; all of them can be read."""
    files = sorted(fold(world).glob("checkpoint_*.pth")) if fold(world).is_dir() else []
    held = {file.name: torch.load(file, weights_only=False)["current_epoch"] for file in files}
    if "checkpoint_final.pth" in held:
        return EPOCHS
    return int(held.get("checkpoint_latest.pth", held.get("checkpoint_best.pth", 0)))


def trained_epochs(world: World) -> int:
    """That were begun, by the logs."""
    logs = sorted(fold(world).glob("training_log_*.txt")) if fold(world).is_dir() else []
    found = [int(number) for log in logs for number in re.findall(r": Epoch (\d+)", log.read_text())]
    return max(found, default=0)


def check_training(world: World, whole: list[dict[str, float]]) -> None:
    rows = curve(world)
    assert [row["epoch"] for row in rows] == list(range(EPOCHS))
    for mine, other in zip(rows, whole, strict=True):
        for name, value in other.items():
            assert abs(mine[name] - value) <= TOLERANCE or value != value, f"{name}: {mine[name]}, not {value}"
    assert (fold(world) / "validation" / "summary.json").is_file()
    assert not list(fold(world).glob("*.unfinished"))


def kill_trainings(base: World, kills: int, say: Callable[[str], None]) -> Counter[str]:
    """Each killed once or more and resumed until it ends: as one that was never cut off.

    Returns:
        What happened, counted.
    """
    whole = copy_of(base, base.root.parent / "whole")
    seconds = training(whole).wait()
    expected = curve(whole)
    counts: Counter[str] = Counter()
    number = 0
    while counts["kills"] < kills:
        number += 1
        world = copy_of(base, base.root.parent / f"killed_{number}")
        command = training(world)
        for _ in range(random.randint(1, 2)):
            if not command.kill_after(random.uniform(0.02, 0.98) * seconds):
                counts["ended before the kill"] += 1
                break
            counts["kills"] += 1
            kept, begun = done_epochs(world), trained_epochs(world)
            counts[f"epochs lost: {max(0, begun - kept)}"] += 1
            assert begun - kept <= SAVE_EVERY
            command = training(world, resumes=True)
        else:
            command.wait()
        check_training(world, expected)
        counts["trainings that ended as the one that was not killed"] += 1
        say(", ".join(f"{what}: {count}" for what, count in sorted(counts.items())))
    return counts


STORE, BOARD, EXPORT = "x", "board", "exported"
OTHERS = {
    "store": ("store", "-d", "4", "-device", "cpu", "-o", STORE),
    "leaderboard": ("leaderboard", "-d", "4", "-np", "1", "-o", BOARD),
    "export": ("export", "-d", "4", "-c", "3d_fullres", "-f", "0", "--format", "nnunet", "-o", EXPORT),
}


def store_of(world: World) -> Path:
    return world.preprocessed / DATASET / f"nnUNetPlans_3d_fullres_teacher_{STORE}"


def check_after_kill(name: str, world: World) -> bool:
    """What a killed command has left is whole.

    Returns:
        Whether the same command has still something to do.
    """
    if name == "leaderboard":
        for file in (world.root / BOARD).glob("*.json"):
            json.loads(file.read_text())
        for file in (world.root / BOARD).glob("*.html"):
            assert file.read_text().rstrip().endswith("</html>"), file
    if name == "export" and (world.root / EXPORT).exists():
        about = json.loads((world.root / EXPORT / "export.json").read_text())
        for file, digest in about["files"].items():
            assert sha256(world.root / EXPORT / file) == digest, file
        with zipfile.ZipFile(world.root / EXPORT / f"{DATASET}.zip") as archive:
            assert archive.testzip() is None
        return False
    return True


def kill_others(base: World, kills: int, names: Sequence[str], say: Callable[[str], None]) -> Counter[str]:
    """The same of a store, and of a leaderboard and an export of what is there."""
    counts: Counter[str] = Counter()
    for name in names:
        arguments = OTHERS[name]
        whole = copy_of(base, base.root.parent / name)
        seconds = of_kd(whole, *arguments).wait()
        for number in range(kills):
            world = copy_of(base, base.root.parent / f"{name}_{number}")
            killed = of_kd(world, *arguments).kill_after(random.uniform(0.02, 0.98) * seconds)
            if check_after_kill(name, world):
                of_kd(world, *arguments).wait()
            check_after_kill(name, world)
            if name == "store":
                for file in store_of(whole).glob("*.b2nd"):
                    assert (store_of(world) / file.name).read_bytes() == file.read_bytes(), file.name
            counts[f"kills of {name}, then ended well" if killed else f"{name} ended before the kill"] += 1
            say(f"{name}: {number + 1}")
    return counts


def soak(trainings: int, others: int, names: Sequence[str], say: Callable[[str], None] = print) -> Counter[str]:
    """
    Args:
        trainings: kills of trainings.
        others: kills of each other command.
        names: of these commands.

    Raises:
        AssertionError: where something was lost.
    """
    with tempfile.TemporaryDirectory() as folder:
        base = World(Path(folder) / "base")
        make_trained_world(base.root)
        return kill_others(base, others, names, say) + kill_trainings(base, trainings, say)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trainings", type=int, nargs="?", default=50, help="kills of trainings")
    parser.add_argument("others", type=int, nargs="?", default=5, help="kills of each of the other commands")
    parser.add_argument("names", nargs="*", default=list(OTHERS), metavar="NAME", help=f"of: {', '.join(OTHERS)}")
    args = parser.parse_args()
    for what, count in soak(args.trainings, args.others, args.names, partial(print, flush=True)).items():
        print(f"{count:4} {what}")
