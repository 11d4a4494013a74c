"""The Snakemake workflow: what it would run, and which configs it refuses."""

import json
import os
import re
import select
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from nnunetv2_kd.errors import KDError
from tests.conftest import DATASET

ROOT = Path(__file__).parents[2]
WORKFLOW = ROOT / "workflow"
sys.path.insert(0, str(WORKFLOW))
from kd_config import check_config  # noqa: E402
from kd_grid import check_unchanged, make_grid, options_file, read_recipe  # noqa: E402

SNAKEMAKE = shutil.which("snakemake")
needs_snakemake = pytest.mark.skipif(SNAKEMAKE is None, reason="pip install '.[workflow]'")
BUNDLED, TINY = (yaml.safe_load((WORKFLOW / name).read_text()) for name in ("config.yaml", "config_tiny.yaml"))


@pytest.fixture
def folders(tmp_path):
    """nnU-Net's three folders, with a dataset that is not preprocessed yet."""
    found = {name: tmp_path / name for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    for folder in found.values():
        folder.mkdir()
    (found["nnUNet_raw"] / DATASET).mkdir()
    return found


@pytest.fixture
def grid_of(folders, tmp_path):
    def make(config):
        checked = check_config({**config, "output": str(tmp_path / "grid")})
        return make_grid(checked, folders["nnUNet_raw"], folders["nnUNet_preprocessed"])

    return make


@pytest.fixture
def dry_run(folders, tmp_path):
    """Snakemake's answer to what it would run: its exit status, the jobs per rule, and all that it printed."""

    def run(*arguments):
        env = {**os.environ, **{name: str(folder) for name, folder in folders.items()}, "PYTHONPATH": str(ROOT)}
        command = [str(SNAKEMAKE), "-s", str(WORKFLOW / "Snakefile"), "--cores", "2", "-n", *map(str, arguments)]
        done = subprocess.run(command, env=env, capture_output=True, text=True, cwd=tmp_path)
        printed = done.stdout + done.stderr
        return done.returncode, {rule: int(n) for rule, n in re.findall(r"^(\w+) +(\d+)$", printed, re.M)}, printed

    return run


# ---- what would run


@needs_snakemake
def test_the_bundled_grid(dry_run):
    status, jobs, printed = dry_run()
    assert status == 0, printed
    assert jobs == {
        "preprocess": 1,
        "train_teacher": 5,
        "options": 30,  # 5 methods x 2 sizes x 3 seeds
        "plan_student": 18,  # three of the five methods share a plans file per size and seed
        "train_student": 150,
        "leaderboard": 1,
        "all": 1,
        "total": 206,
    }
    commands = [line for line in printed.splitlines() if "nnUNetv2_train" in line]
    assert len(commands) == 155
    assert all(" --c >" in command and "-device cuda" in command for command in commands)
    assert len(re.findall(r"resources:.* gpu=1\b", printed)) == 156  # and the leaderboard, for --time
    assert re.search(r"nnUNetv2_kd leaderboard .* -f 0 1 2 3 4 .* --time 5 ", printed)


@needs_snakemake
def test_only_what_is_not_there_is_run(dry_run, folders, grid_of, tmp_path):
    """One training is left, and its plans; then none, with the options gone as well. With a page that is there."""
    (tmp_path / "kd_grid_tiny" / "leaderboard" / DATASET).mkdir(parents=True)
    page = tmp_path / "kd_grid_tiny" / "leaderboard" / DATASET / "index.html"
    models = grid_of(TINY).models.values()
    for model in models:
        fold = folders["nnUNet_results"] / model.dataset / model.name / "fold_0" / "validation"
        fold.mkdir(parents=True)
        (fold / "summary.json").write_text("{}")
    (fold / "summary.json").unlink()
    plans = folders["nnUNet_preprocessed"] / DATASET
    plans.mkdir()
    (plans / "nnUNetPlans.json").write_text("{}")
    page.touch()
    status, jobs, printed = dry_run("--configfile", WORKFLOW / "config_tiny.yaml")
    assert status == 0, printed
    assert jobs == {"options": 2, "plan_student": 1, "train_student": 1, "leaderboard": 1, "all": 1, "total": 6}
    (fold / "summary.json").write_text("{}")
    page.unlink()
    assert dry_run("--configfile", WORKFLOW / "config_tiny.yaml")[1] == {"leaderboard": 1, "all": 1, "total": 2}


@needs_snakemake
def test_a_wrong_config_runs_nothing(dry_run):
    status, jobs, printed = dry_run("--config", "devise=cpu", "retries=often")
    assert status != 0
    assert not jobs
    assert "The workflow's config cannot be used" in printed
    assert "devise" in printed
    assert "retries" in printed
    assert "Traceback" not in printed


@needs_snakemake
def test_nnunets_paths_must_be_set(dry_run, folders):
    folders["nnUNet_results"] = ""
    assert "Not set: nnUNet_results" in dry_run()[2]


def test_the_slurm_profile_has_the_rules_of_the_workflow():
    profile = yaml.safe_load((WORKFLOW / "profiles" / "slurm" / "config.yaml").read_text())
    rules = re.findall(r"^(?:use )?rule (?:\w+ as )?(\w+)", (WORKFLOW / "Snakefile").read_text(), re.M)
    assert set(profile["set-resources"]) <= set(rules)


# ---- names


def test_no_two_models_share_a_folder(grid_of):
    grid = grid_of(BUNDLED)
    assert len(grid.students) == 30
    assert {name for _, name in grid.teachers} == {"nnUNetTrainer__nnUNetPlans__3d_fullres"}
    alone, region, emkd = (
        f"{trainer}__nnUNetPlans_half_s1{method}__3d_fullres"
        for trainer, method in (
            ("nnUNetTrainerKDBaseline", ""),
            ("nnUNetTrainerRegionKD", ""),
            ("nnUNetTrainerRegionKD", "_emkd"),
        )
    )
    assert {(DATASET, alone), (DATASET, region), (DATASET, emkd)} <= set(grid.students)
    options = yaml.safe_load(grid.students[DATASET, emkd].options)
    assert options["terms"] == yaml.safe_load((ROOT / "configs" / "emkd.yaml").read_text())["terms"]
    assert options["teacher"] == {"trainer": "nnUNetTrainer", "plans": "nnUNetPlans"}
    assert (options["seed"], options["epochs"]) == (1, 250)
    assert "teacher" not in yaml.safe_load(grid.students[DATASET, alone].options)


def test_more_methods_sizes_and_teachers_rename_nothing(grid_of):
    more = {
        **BUNDLED,
        "teachers": {**BUNDLED["teachers"], "longer": {"trainer": "nnUNetTrainer_4000epochs"}},
        "methods": {
            **BUNDLED["methods"],
            "cwd": {"trainer": "nnUNetTrainerKD", "options": "configs/cwd.yaml"},
            "two": {"trainer": "nnUNetTrainerMultiTeacherKD", "teachers": ["nnunet", "longer"]},
        },
        "sizes": {**BUNDLED["sizes"], "tiny": {"params": "0.1M"}},
        "seeds": [0, 1, 2, 3],
    }
    before, after = grid_of(BUNDLED).students, grid_of(more).students
    assert before.items() <= after.items()
    two = after[DATASET, "nnUNetTrainerMultiTeacherKD__nnUNetPlans_tiny_s3_two__3d_fullres"]
    assert len(yaml.safe_load(two.options)["teachers"]) == len(two.teachers) == 2


def test_teachers_of_several_folds_are_one_model(grid_of):
    sites = {"a": {"fold": 5}, "b": {"fold": 6}}
    methods = {"two": {"trainer": "nnUNetTrainerMultiTeacherKD", "teachers": ["a", "b"]}}
    grid = grid_of({**BUNDLED, "teachers": sites, "methods": methods})
    assert [model.folds for model in grid.teachers.values()] == [(5, 6)]


@pytest.mark.parametrize("recipe", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda file: file.stem)
def test_every_recipe_can_be_a_method(recipe, grid_of):
    method = {"trainer": "nnUNetTrainerKD", "options": f"configs/{recipe.name}"}
    grid = grid_of({**TINY, "methods": {"it": method}})
    read = read_recipe(recipe)
    assert all(yaml.safe_load(model.options).items() >= read.items() for model in grid.students.values())


@pytest.mark.parametrize("config", [BUNDLED, TINY], ids=["config.yaml", "config_tiny.yaml"])
def test_recipes_named_in_the_bundled_configs_exist(config):
    named = [method["options"] for method in config["methods"].values() if "options" in method]
    assert all((ROOT / file).is_file() for file in named)


# ---- refused

WRONG = {
    "unknown key": ({"fold": [0]}, "fold: "),
    "wrong type": ({"folds": ["zero"]}, "folds.0"),
    "missing": ({"sizes": {}}, "sizes"),
    "twice": ({"seeds": [0, 0]}, "same value twice"),
    "size": ({"sizes": {"a": {"width": 0.5, "flops": 0.1}}}, "give one of width, params, flops, features and latency"),
    "name": ({"methods": {"a__b": {"trainer": "nnUNetTrainerKD"}}}, "methods.a__b"),
    "teacher": ({"methods": {"a": {"trainer": "nnUNetTrainerKD", "teachers": ["x"]}}}, "methods.a.teachers names x"),
    "stock": ({"teachers": {"a": {"options": {"epochs": 3}}}}, "reads no options"),
    "epochs": ({"training": {"epochs": 0}}, "training.epochs"),
    "recipe": ({"methods": {"a": {"trainer": "nnUNetTrainerKD", "options": "configs/x.yaml"}}}, "configs/emkd.yaml"),
    "cascade": ({"datasets": [{"id": 4, "configuration": "3d_cascade_fullres"}]}, "train it by hand"),
    "dataset": ({"datasets": [{"id": 7}]}, "Dataset007_NAME"),
    "plans": ({"datasets": [{"id": 4, "plans": "MyPlans"}]}, "MyPlans of Dataset004_Hippocampus do not exist"),
    "one folder": (
        {"methods": {"a": {"trainer": "nnUNetTrainerKD"}, "b": {"trainer": "nnUNetTrainerKD"}}},
        "Two models would be written",
    ),
}


@pytest.mark.parametrize(("change", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_config_is_refused(grid_of, change, message):
    with pytest.raises(KDError, match=re.escape(message)):
        grid_of({**BUNDLED, **change})


def test_a_recipe_with_a_wrong_term_is_refused(grid_of, tmp_path):
    (tmp_path / "mine.yaml").write_text("terms: {voxel_kl: {weigth: 1}}")
    methods = {"mine": {"trainer": "nnUNetTrainerKD", "options": str(tmp_path / "mine.yaml")}}
    with pytest.raises(KDError, match=r"methods.mine[\s\S]*weigth"):
        grid_of({**BUNDLED, "methods": methods})


def test_plans_that_are_there_are_used(grid_of, folders):
    (folders["nnUNet_preprocessed"] / DATASET).mkdir()
    (folders["nnUNet_preprocessed"] / DATASET / "MyPlans.json").write_text(json.dumps({}))
    grid = grid_of({**BUNDLED, "datasets": [{"id": 4, "plans": "MyPlans"}]})
    assert not grid.planned


def test_options_may_change_until_a_training_has_begun(grid_of, folders):
    before, after = grid_of(TINY), grid_of({**TINY, "training": {**TINY["training"], "epochs": 5}})
    model = next(iter(before.students.values()))
    file = options_file(before.config, model)
    file.parent.mkdir(parents=True)
    file.write_text(model.options)
    check_unchanged(after, folders["nnUNet_results"])
    fold = folders["nnUNet_results"] / model.dataset / model.name / "fold_0"
    fold.mkdir(parents=True)
    (fold / "checkpoint_latest.pth").touch()
    check_unchanged(before, folders["nnUNet_results"])
    with pytest.raises(KDError, match=f"{model.name}: trained with epochs: 4; now epochs: 5"):
        check_unchanged(after, folders["nnUNet_results"])


# ---- GPUs of one machine


def test_jobs_of_one_machine_get_different_gpus(tmp_path):
    def start(visible):
        command = [sys.executable, WORKFLOW / "on_free_gpu.py", "sh", "-c", "echo $CUDA_VISIBLE_DEVICES; read _"]
        env = {**os.environ, "CUDA_VISIBLE_DEVICES": visible, "TMPDIR": str(tmp_path)}
        return subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    first, second = start("3,5"), start("3,5")
    assert {first.stdout.readline(), second.stdout.readline()} == {"3\n", "5\n"}
    third = start("3,5")
    assert not select.select([third.stdout], [], [], 0.5)[0]  # waits
    first.kill()
    assert third.stdout.readline() in ("3\n", "5\n")
    alone = start("3")
    assert alone.stdout.readline() == "3\n"
    for process in (second, third, alone):
        process.communicate("\n", timeout=10)


# ---- SLURM, of which only the words are here


def test_a_cancelled_job_is_reported_in_words_that_the_executor_knows(tmp_path):
    """As sacct says it: a job that the executor takes for one that runs is waited for for ever."""
    real = tmp_path / "sacct"
    real.write_text('#!/bin/sh\necho "7|COMPLETED"; echo "8|CANCELLED by 0"; echo "$*"; test "$1" != bad\n')
    real.chmod(0o755)
    shim = WORKFLOW / "slurm"
    environment = {**os.environ, "PATH": os.pathsep.join([str(shim), str(tmp_path), os.environ["PATH"]])}

    def sacct(*arguments):
        return subprocess.run(["sacct", *arguments], env=environment, capture_output=True, text=True)

    assert sacct("-X", "--name a").stdout == "7|COMPLETED\n8|CANCELLED\n-X --name a\n"
    assert sacct("bad").returncode == 1


def test_the_tiny_grid_asks_for_little():
    jobs = check_config({**TINY, "output": "x"}).jobs
    assert max(jobs.preprocess.mem_mb, jobs.train.mem_mb, jobs.leaderboard.mem_mb) <= 4000
