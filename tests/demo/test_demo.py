import io
import json
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import matplotlib.image
import pytest
import torch
import yaml

from nnunetv2_kd.cli.main import main
from nnunetv2_kd.demo.run import (
    ALL_DATASET,
    BUNDLED_TEACHER,
    DATA,
    LABELLED_DATASET,
    MODELS,
    TEACHER,
    read_plans,
    write_labelled,
)
from nnunetv2_kd.nnunet.files import sha256
from nnunetv2_kd.nnunet.locks import is_alive
from tests.conftest import World, fewer_intensities
from tests.in_process import run_in_process
from tests.waiting import wait_until


def test_bundled_data_are_whole_and_attributed():
    dataset_json = json.loads((DATA / "dataset.json").read_text())
    for part, count in (("Tr", dataset_json["numTraining"]), ("Ts", 8)):
        images = {f.name.removesuffix("_0000.nii.gz") for f in (DATA / f"images{part}").iterdir()}
        labels = {f.name.removesuffix(".nii.gz") for f in (DATA / f"labels{part}").iterdir()}
        assert images == labels
        assert len(images) == count
    assert "CC-BY-SA 4.0" in (DATA / "ATTRIBUTION.md").read_text()
    assert sum(f.stat().st_size for f in DATA.rglob("*")) < 3e6


def test_bundled_teacher_is_the_one_that_its_readme_tells_of():
    readme = (BUNDLED_TEACHER.parent / "README.md").read_text()
    assert sha256(BUNDLED_TEACHER) in readme
    assert "CC-BY-SA 4.0" in readme
    assert BUNDLED_TEACHER.stat().st_size < 4e6
    with zipfile.ZipFile(BUNDLED_TEACHER) as zipped:
        (checkpoint,) = (name for name in zipped.namelist() if name.endswith("checkpoint_final.pth"))
        assert f"{TEACHER.trainer}__{TEACHER.plans}__3d_fullres/fold_{TEACHER.fold}/" in checkpoint
        with zipped.open(checkpoint) as file:
            assert "hippocampus_" not in str(torch.load(io.BytesIO(file.read()), weights_only=True)["init_args"])


def test_the_user_has_few_labels(tmp_path):
    (tmp_path / "raw").mkdir()
    write_labelled(tmp_path)
    raw = tmp_path / "raw" / LABELLED_DATASET
    labelled = {f.name.removesuffix(".nii.gz") for f in (raw / "labelsTr").iterdir()}
    assert labelled == {f.name.removesuffix("_0000.nii.gz") for f in (raw / "imagesTr").iterdir()}
    scans = {f.name.removesuffix("_0000.nii.gz") for f in (tmp_path / "scans").iterdir()}
    assert (len(labelled), len(scans), len(labelled | scans)) == (5, 19, 24)
    assert json.loads((raw / "dataset.json").read_text())["numTraining"] == 5


def test_a_folder_in_use_is_left_alone(tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("precious")
    assert main(["demo", "-o", str(tmp_path)]) == 1
    assert "is not empty and was left alone" in capsys.readouterr().err
    assert [f.name for f in tmp_path.iterdir()] == ["mine.txt"]


INTERRUPTED = """
import signal, sys
sys.path.insert(0, {root!r})
from nnunetv2_kd.demo import run
from nnunetv2_kd.interruption import handle_sigterm_like_ctrl_c, status_of

CHILD = '''
import signal, subprocess, sys, time
signal.signal(signal.SIGINT, signal.{child})  # under nohup, SIGINT is ignored
grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
try:
    print("started", grandchild.pid, flush=True)
    time.sleep(600)
except KeyboardInterrupt:
    grandchild.kill()
    grandchild.wait()
    print("has cleaned up", flush=True)
'''
signal.signal(signal.SIGINT, signal.default_int_handler)
handle_sigterm_like_ctrl_c()
run.PATIENCE = {patience}
try:
    with open({log!r}, "w") as log:
        run.run_command([sys.executable, "-c", CHILD], {{}}, log)
except KeyboardInterrupt as error:
    sys.exit(status_of(error))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize(
    ("sent", "child", "status"),
    [
        (signal.SIGINT, "default_int_handler", 130),
        (signal.SIGTERM, "default_int_handler", 143),
        (signal.SIGTERM, "SIG_IGN", 143),
    ],
)
def test_a_command_that_is_interrupted_ends_with_its_processes(tmp_path, sent, child, status):
    log, listens = tmp_path / "log.txt", child != "SIG_IGN"
    code = INTERRUPTED.format(
        root=str(Path(__file__).parents[2]), log=str(log), child=child, patience=60 if listens else 0.5
    )
    with subprocess.Popen([sys.executable, "-c", code]) as process:
        wait_until(lambda: log.is_file() and "started" in log.read_text(), "the start", 60)
        process.send_signal(sent)
        try:
            assert process.wait(60) == status
        finally:
            process.kill()
    assert ("has cleaned up" in log.read_text()) == listens
    grandchild = int(log.read_text().split()[1])
    wait_until(lambda: not is_alive(grandchild), "the grandchild's end", 10)


@pytest.mark.slow
@pytest.mark.commands
def test_demo_from_start_to_end(tmp_path):
    output = tmp_path / "with a space"
    done = World(tmp_path).run(
        "nnUNetv2_kd", "demo", "--smoke", "--train-teacher", "-o", output, installed=True, COLUMNS="160"
    )
    check_demo(output, done.stdout)
    rows = json.loads((output / "results.json").read_text())
    assert [(row["labelled_cases"], row["scans"]) for row in rows] == [(24, 0), (4, 0), (4, 19)]


@pytest.mark.commands
def test_demo_of_few_cases(tmp_path, monkeypatch, capsys):
    """All its commands, in this process."""
    output = tmp_path / "with a space"

    def run(command, env, log):
        program = Path(command[0]).name
        predicts = program == "nnUNetv2_predict" or command[1] == "predict"
        alone = ["-npp", "0", "-nps", "0"] if predicts else []
        augmented_here = {"nnUNet_n_proc_DA": "0"} if program == "nnUNetv2_train" else {}
        done = run_in_process(program, [*command[1:], *alone], {**env, **augmented_here}, tmp_path)
        log.write(done.stdout + done.stderr)
        return done.returncode

    monkeypatch.setattr("nnunetv2_kd.demo.run.DATA", few_cases(tmp_path / "data"))
    monkeypatch.setattr("nnunetv2_kd.demo.run.run_command", run)
    monkeypatch.setenv("COLUMNS", "160")
    with fewer_intensities():
        assert main(["demo", "--smoke", "-o", str(output)]) == 0
    check_demo(output, capsys.readouterr().out)
    teacher, *students = json.loads((output / "results.json").read_text())
    assert teacher["labelled_cases"] == 193
    assert teacher["mean_dice"] > 0.8
    assert [(student["labelled_cases"], student["scans"]) for student in students] == [(4, 0), (4, 1)]
    check_students_train_alike(output)


def check_students_train_alike(output):
    """The distilled student has the student alone's network, patches, batches and options, and a teacher."""
    alone, distilled = ((read_plans(model, output)[0], options_of(model, output)) for model in MODELS[1:])
    of_data = ("data_identifier", "median_image_size_in_voxels")
    plans = [found[0]["configurations"]["3d_fullres"] for found in (alone, distilled)]
    first, second = ({key: value for key, value in found.items() if key not in of_data} for found in plans)
    assert first == second
    assert "teacher" not in alone[1]
    assert {key: value for key, value in distilled[1].items() if key != "teacher"} == alone[1]


def options_of(model, output):
    """What the command was given."""
    by_user, by_command = output / "student_alone.yaml", output / "raw" / ALL_DATASET / "student.yaml"
    return yaml.safe_load((by_user if model.dataset == LABELLED_DATASET else by_command).read_text())


def few_cases(folder):
    """The bundled data with six cases for training and two held out."""
    for part, count in (("Tr", 6), ("Ts", 2)):
        for kind in ("images", "labels"):
            (folder / f"{kind}{part}").mkdir(parents=True)
            for file in sorted((DATA / f"{kind}{part}").iterdir())[:count]:
                shutil.copy(file, folder / f"{kind}{part}")
    dataset_json = json.loads((DATA / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps(dataset_json | {"numTraining": 6}))
    return folder


def check_demo(output, printed):
    for words in ("teacher", "student alone", "student distilled", "Anterior", "Posterior", "params", "stock", "fast"):
        assert words in printed
    rows = json.loads((output / "results.json").read_text())
    assert [row["model"] for row in rows] == [model.name for model in MODELS]
    for row, model in zip(rows, MODELS, strict=True):
        summary = json.loads((model.predictions(output) / "summary.json").read_text())
        assert row["mean_dice"] == summary["foreground_mean"]["Dice"]
        assert row["ms_per_case"] > 0
        assert row["ms_per_case_fast"] > 0
        assert row["differing_voxels"] <= 20  # float32 in another order
    assert rows[0]["params"] > 3 * rows[1]["params"] == 3 * rows[2]["params"]
    assert matplotlib.image.imread(output / "comparison.png").shape[2] in (3, 4)
