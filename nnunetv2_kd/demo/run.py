"""A user with five labelled scans, some more without labels, and a large model of somebody else.

Install that teacher (or train one), train a student alone on what is labelled, let the teacher label the other scans,
train a distilled student on all of them, and predict held-out cases. Every step is one of nnU-Net's or our own
commands, shown as a user would type it."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import yaml
from rich.console import Console

from nnunetv2_kd.errors import KDError

DATA = Path(__file__).parent / "data"
OPTIONS = Path(__file__).parent / "options"
BUNDLED_TEACHER = Path(__file__).parent / "teacher" / "teacher.zip"
DATASET = "Dataset004_Hippocampus"  # the teacher's
LABELLED_DATASET = "Dataset005_Labelled"  # the user's
ALL_DATASET = "Dataset105_LabelledAndScans"  # the user's, with the scans that the teacher labelled
LABELLED = 5  # cases that keep their labels: four to train and one to validate
CONFIGURATION = "3d_fullres"
PATIENCE = 20.0  # seconds for an interrupted command to end by itself
SMOKE = {"epochs": 1, "iterations_per_epoch": 2, "val_iterations_per_epoch": 1}


@dataclass(frozen=True)
class DemoModel:
    """One of the demo's models: its name in the table and how it is trained."""

    name: str
    dataset: str
    trainer: str
    plans: str
    options: str
    fold: str = "0"

    @property
    def number(self) -> int:
        """Of its dataset."""
        return int(self.dataset[len("Dataset") :].split("_")[0])

    def folder(self, output: Path) -> Path:
        return output / "results" / self.dataset / f"{self.trainer}__{self.plans}__{CONFIGURATION}"

    def predictions(self, output: Path) -> Path:
        """Of nnUNetv2_predict."""
        return output / "predictions" / f"{self.trainer}__{self.plans}"

    def fast_predictions(self, output: Path) -> Path:
        """The predictions of nnUNetv2_kd predict."""
        return output / "predictions" / f"{self.trainer}__{self.plans}__fast"


TEACHER = DemoModel("teacher", DATASET, "nnUNetTrainerKDBaseline", "nnUNetPlansTeacher", "teacher.yaml", fold="all")
ALONE = DemoModel("student alone", LABELLED_DATASET, "nnUNetTrainerKDBaseline", "nnUNetPlansStudent", "student.yaml")
DISTILLED = DemoModel("student distilled", ALL_DATASET, "nnUNetTrainerRegionKD", "nnUNetPlansStudent", "student.yaml")
MODELS = (TEACHER, ALONE, DISTILLED)


class Runner:
    """Runs commands in the demo's own nnU-Net folders, with their output in a log file."""

    def __init__(self, output: Path, console: Console) -> None:
        self.output = output
        self.console = console
        self.log = output / "demo.log"
        self.env = os.environ | {
            "nnUNet_raw": str(output / "raw"),
            "nnUNet_preprocessed": str(output / "preprocessed"),
            "nnUNet_results": str(output / "results"),
            "nnUNet_n_proc_DA": "1",
            "nnUNet_def_n_proc": "2",
        }

    def __call__(self, command: str, options: Path | None = None) -> None:
        """Run one command.

        Raises:
            KDError: if it fails; shows the end of its output.
        """
        shown = f"nnUNet_kd_config={options.name} {command}" if options else command
        self.console.print(f"$ {shown}", highlight=False, soft_wrap=True)
        program, *arguments = shlex.split(command)
        executable = Path(sys.executable).parent / program
        env = self.env | ({"nnUNet_kd_config": str(options)} if options else {})
        started = time.perf_counter()
        with self.log.open("a") as log:
            log.write(f"\n$ {shown}\n")
            log.flush()
            status = run_command([str(executable) if executable.exists() else program, *arguments], env, log)
        if status != 0:
            end = "\n".join(self.log.read_text().splitlines()[-15:])
            raise KDError(f"This command failed: {shown}\n{end}\nThe whole log: {self.log}")
        self.console.print(f"  {time.perf_counter() - started:.0f} s", style="dim")


def run_command(command: Sequence[str], env: Mapping[str, str], log: TextIO) -> int:
    """The exit status of a command that writes to a log.

    An interruption is passed on as Ctrl-C and waited for. If killed, as by `subprocess.run`, nnU-Net's commands would
    leave the processes that they have started. A command that does not end within `PATIENCE` (started under nohup,
    nobody listens to Ctrl-C) is killed with all of these.
    """
    with subprocess.Popen(
        command, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
    ) as process:
        try:
            return process.wait()
        except KeyboardInterrupt:
            if os.name != "posix":
                process.terminate()
                raise
            process.send_signal(signal.SIGINT)
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
            raise


def run_demo(output: Path, seed: int, console: Console, train_teacher: bool = False, smoke: bool = False) -> None:
    """Run everything up to the predictions of the held-out cases.

    Args:
        output: a folder that does not exist yet, or is empty.
        seed: of all trainings.
        console: where to show progress.
        train_teacher: train a teacher on the demo's own 24 cases instead of using the bundled one.
        smoke: train for two iterations only, to check that everything runs; a trained teacher then has few channels.

    Raises:
        KDError: if the folder is in use, or a command fails.
    """
    if output.exists() and any(output.iterdir()):
        raise KDError(f"{output} is not empty and was left alone. Choose another folder with -o, or remove it.")
    write_labelled(output)
    (output / "predictions").mkdir()
    run = Runner(output, console)
    width = 0.125 if smoke and train_teacher else 0.5
    if train_teacher:
        shutil.copytree(DATA, output / "raw" / DATASET)
        run(f"nnUNetv2_plan_and_preprocess -d {TEACHER.number} -c {CONFIGURATION} -np 2")
        plan(TEACHER, run, f"--width {width} --batch-size 2")
        train(TEACHER, run, write_options(TEACHER, output, seed, smoke))
    else:
        run(f"nnUNetv2_install_pretrained_model_from_zip {shlex.quote(str(BUNDLED_TEACHER))}")
    run(f"nnUNetv2_plan_and_preprocess -d {ALONE.number} -c {CONFIGURATION} -np 2")
    plan(ALONE, run, f"--width {width / 2} --convs-per-stage 1 --batch-size 2")
    options = write_options(ALONE, output, seed, smoke)
    train(ALONE, run, options)
    label_scans(run, options)
    train(DISTILLED, run, output / "raw" / ALL_DATASET / "student.yaml")
    for model in MODELS:
        predict(model, run)


def write_labelled(output: Path) -> None:
    """Write the user's dataset, of which `LABELLED` cases have labels, and a folder with the other scans."""
    raw, scans = output / "raw" / LABELLED_DATASET, output / "scans"
    shutil.copytree(DATA, raw)
    scans.mkdir()
    cases = sorted(file.name.removesuffix(".nii.gz") for file in (raw / "labelsTr").glob("*.nii.gz"))
    labelled = {cases[len(cases) * number // LABELLED] for number in range(LABELLED)}
    for case in cases:
        if case not in labelled:
            (raw / "labelsTr" / f"{case}.nii.gz").unlink()
            (raw / "imagesTr" / f"{case}_0000.nii.gz").rename(scans / f"{case}_0000.nii.gz")
    dataset_json = json.loads((raw / "dataset.json").read_text()) | {"numTraining": len(labelled)}
    (raw / "dataset.json").write_text(json.dumps(dataset_json, indent=1))


def label_scans(run: Runner, options: Path) -> None:
    """Let the teacher label the scans, and preprocess them with the labelled cases in the teacher's way."""
    scans, teacher = (shlex.quote(str(folder)) for folder in (run.output / "scans", TEACHER.folder(run.output)))
    run(
        f"nnUNetv2_kd unlabelled -d {ALONE.number} -i {scans} --teacher_folder {teacher} -f {TEACHER.fold} "
        f"-o {ALL_DATASET} -device cpu",
        options,
    )
    run(f"nnUNetv2_extract_fingerprint -d {DISTILLED.number} -np 2")
    plan(DISTILLED, run, f"-p {TEACHER.plans} --width 0.5 --convs-per-stage 1")
    run(f"nnUNetv2_preprocess -d {DISTILLED.number} -plans_name {TEACHER.plans} -c {CONFIGURATION} -np 2")


def plan(model: DemoModel, run: Runner, flags: str) -> None:
    run(f"nnUNetv2_kd plan -d {model.number} -c {CONFIGURATION} {flags} -o {model.plans}")


def train(model: DemoModel, run: Runner, options: Path) -> None:
    of_model = f"{model.number} {CONFIGURATION} {model.fold} -p {model.plans} -tr {model.trainer}"
    run(f"nnUNetv2_train {of_model} -device cpu", options)


def predict(model: DemoModel, run: Runner) -> None:
    """Predict the held-out cases with nnU-Net's command and with ours."""
    images = shlex.quote(str(run.output / "raw" / LABELLED_DATASET / "imagesTs"))
    of_model = f"-d {model.number} -c {CONFIGURATION} -f {model.fold} -p {model.plans} -tr {model.trainer} -device cpu"
    stock, fast = (shlex.quote(str(folder(run.output))) for folder in (model.predictions, model.fast_predictions))
    run(f"nnUNetv2_predict -i {images} -o {stock} {of_model} -npp 1 -nps 1")
    run(f"nnUNetv2_kd predict -i {images} -o {fast} {of_model} -npp 1 -nps 1")


def write_options(model: DemoModel, output: Path, seed: int, smoke: bool) -> Path:
    """Write the model's bundled options, with the seed, to where the user can read them."""
    options = yaml.safe_load((OPTIONS / model.options).read_text()) | {"seed": seed} | (SMOKE if smoke else {})
    file = output / f"{model.name.replace(' ', '_')}.yaml"
    file.write_text(yaml.safe_dump(options, sort_keys=False))
    return file


def read_plans(model: DemoModel, output: Path) -> tuple[dict, dict]:
    """plans.json and dataset.json of a trained model."""
    folder = model.folder(output)
    return json.loads((folder / "plans.json").read_text()), json.loads((folder / "dataset.json").read_text())
