"""Several teachers teach one student, in nnU-Net's training loop."""

import json
import shutil

import numpy as np
import pytest
import yaml

from nnunetv2_kd.cli.main import main
from nnunetv2_kd.errors import KDError
from nnunetv2_kd.nnunet.datasets import device_flag
from nnunetv2_kd.teachers.ensemble import EnsembleTeacher
from nnunetv2_kd.trainers import nnUNetTrainerKDBaseline, nnUNetTrainerMultiTeacherKD
from nnunetv2_kd.trainers.provenance import make_record
from tests.conftest import BIN, DATASET, World, copy_of, made_once
from tests.small_networks import architecture
from tests.trainers.helpers import inside, make_trainer, train

RESENC = "nnUNetPlansRes"


@pytest.fixture(scope="session")
def two_teachers_world(trained_world, tmp_path_factory):
    """`trained_world` with a narrower residual teacher that was trained on other cases: fold 5."""

    def make(root):
        with pytest.MonkeyPatch.context() as patched:
            train_residual(inside(copy_of(trained_world, root), patched))

    return World(made_once(tmp_path_factory, "two_teachers", make))


def train_residual(here):
    plans = json.loads(here.plans_file().read_text())
    configuration = plans["configurations"]["3d_fullres"]
    strides = configuration["architecture"]["arch_kwargs"]["strides"]
    features = tuple([2, 4, 8, 8, 8, 8][: len(strides)])
    configuration["architecture"] = architecture(3, features, strides, residual=True, blocks=1)
    plans["plans_name"] = RESENC
    here.plans_file(RESENC).write_text(json.dumps(plans))
    splits_file = here.preprocessed / DATASET / "splits_final.json"
    splits = json.loads(splits_file.read_text())
    splits.append({"train": splits[0]["train"][:2], "val": splits[0]["val"]})
    splits_file.write_text(json.dumps(splits))
    teacher = make_trainer(nnUNetTrainerKDBaseline, here, plans=RESENC, fold=5, student={"width": 1.0})
    train(teacher)
    here.model("nnUNetTrainerKDBaseline", RESENC).rename(here.model("nnUNetTrainer", RESENC))


@pytest.fixture
def two_teachers(here, two_teachers_world):
    """The default teacher and the residual one."""
    shutil.copytree(two_teachers_world.root, here.root, dirs_exist_ok=True)
    return [{"weight": 3}, {"plans": RESENC, "fold": 5}]


@pytest.mark.parametrize("rule", ["mean", "confidence", "region"])
def test_teachers_of_other_width_architecture_and_cases(two_teachers, here, rule):
    trainer = make_trainer(nnUNetTrainerMultiTeacherKD, here, teachers=two_teachers, combine={"rule": rule})
    log = train(trainer)
    assert "seen" not in log.split("WARNING: this is poor")[0]  # neither has seen a validation case
    assert "Teacher 1's pseudo Dice" in log
    assert "Teacher 2's pseudo Dice" in log
    assert "teachers' weights 0." in log
    for row in trainer._history.rows:
        assert row["weight_of_teacher_1"] + row["weight_of_teacher_2"] == pytest.approx(1)
        assert all(np.isfinite(row[term]) for term in ("voxel_kl", "lovasz", "soft_dice", "region_affinity"))
    if rule == "mean":
        assert trainer._history.rows[0]["weight_of_teacher_1"] == pytest.approx(0.75)
    assert [teacher.fold for teacher in make_record(trainer).teachers] == ["0", "5"]


def test_one_teacher_is_too_few(here):
    with pytest.raises(KDError, match=r"needs at least 2 teachers.*fold: 5.*split-teachers -d 4"):
        make_trainer(nnUNetTrainerMultiTeacherKD, here)


def test_the_same_teacher_twice(here):
    trainer = make_trainer(nnUNetTrainerMultiTeacherKD, here, teachers=[{}, {"weight": 2}])
    with pytest.raises(KDError, match="The same teacher is named twice"):
        trainer.on_train_start()


def test_a_teacher_that_is_not_there_is_counted(here):
    trainer = make_trainer(nnUNetTrainerMultiTeacherKD, here, teachers=[{}, {"fold": 3}])
    with pytest.raises(KDError, match=r"Teacher 2 under 'teachers': No teacher: .*fold_3"):
        trainer.on_train_start()


def test_teachers_that_disagree_on_labels(two_teachers, here):
    file = here.model("nnUNetTrainer", RESENC) / "dataset.json"
    file.write_text(file.read_text().replace("Anterior", "Front"))
    trainer = make_trainer(nnUNetTrainerMultiTeacherKD, here, teachers=two_teachers)
    with pytest.raises(KDError, match=r"(?s)Teacher 2 under 'teachers': .*do not fit together.*labels: .*Front"):
        trainer.on_train_start()


def test_a_term_on_features_needs_one_teacher(two_teachers, here):
    trainer = make_trainer(nnUNetTrainerMultiTeacherKD, here, teachers=two_teachers, terms={"fitnet": {}})
    with pytest.raises(KDError, match="fitnet compares features, which cannot be mixed over several teachers"):
        trainer.on_train_start()


def test_what_the_rules_do_without_labels_is_said(two_teachers, here):
    trainer = make_trainer(nnUNetTrainerMultiTeacherKD, here, teachers=two_teachers, combine={"rule": "region"})
    trainer.initialize()
    labels = type("Labels", (), {"ignore_label": 3})
    message = EnsembleTeacher([], [1], trainer.options.combine, labels).describe()
    assert "the rule 'region' falls back to the teachers' mean" in message[-1]


def test_split_teachers_writes_folds_and_options(here, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    file = here.preprocessed / DATASET / "splits_final.json"
    before = json.loads(file.read_text())
    options = tmp_path / "teachers.yaml"
    command = ["split-teachers", "-d", "4", "-n", "2", "-o", str(options)]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert f"nnUNetv2_train 4 3d_fullres 5{device_flag()}\n" in out
    assert f"nnUNet_kd_config={options} nnUNetv2_train 4 3d_fullres 0 -tr nnUNetTrainerMultiTeacherKD" in out
    after = json.loads(file.read_text())
    assert after[:5] == before
    assert sorted(after[5]["train"] + after[6]["train"]) == sorted(before[0]["train"])
    assert after[5]["val"] == before[0]["val"]
    assert yaml.safe_load(options.read_text())["teachers"] == [
        {"plans": "nnUNetPlans", "fold": 5},
        {"plans": "nnUNetPlans", "fold": 6},
    ]
    assert main(command) == 0  # again: nothing new
    assert json.loads(file.read_text()) == after


def test_split_teachers_before_nnunet_made_its_folds(here, tmp_path):
    """The five folds are those that nnU-Net would make."""
    file = here.preprocessed / DATASET / "splits_final.json"
    before = json.loads(file.read_text())
    file.unlink()
    assert main(["split-teachers", "-d", "4", "-o", str(tmp_path / "t.yaml")]) == 0
    assert json.loads(file.read_text())[:5] == before


@pytest.mark.parametrize(
    ("flags", "content", "expected"),
    [
        (["-n", "1"], None, "-n must be at least 2, found 1"),
        (["-n", "99"], None, "99 teachers cannot share"),
        (["-f", "7"], None, "There is no fold 7"),
        (["--cases", "0"], None, "--cases must be at least 1"),
        (["--groups", "GROUPS"], None, "cannot be read"),
        (["--groups", "GROUPS"], "name,site\na,b\n", "needs the columns case and group in its first line, found name"),
        (["--groups", "GROUPS"], "case,group\na,b\na,c\n", "gives a to b and to c"),
        (["--groups", "GROUPS"], "case,group\na,b\n", "training cases have no group"),
    ],
)
def test_split_teachers_bad_input(here, tmp_path, capsys, flags, content, expected):
    groups = tmp_path / "groups.csv"
    if content is not None:
        groups.write_text(content)
    before = (here.preprocessed / DATASET / "splits_final.json").read_text()
    flags = [str(groups) if flag == "GROUPS" else flag for flag in flags]
    assert main(["split-teachers", "-d", "4", "-o", str(tmp_path / "t.yaml"), *flags]) == 1
    assert expected in capsys.readouterr().err
    assert (here.preprocessed / DATASET / "splits_final.json").read_text() == before


@pytest.mark.commands
def test_split_teachers_is_installed(world):
    assert shutil.which("nnUNetv2_kd", path=str(BIN))
    assert "split-teachers" in world.run("nnUNetv2_kd", "--help", installed=True).stdout
