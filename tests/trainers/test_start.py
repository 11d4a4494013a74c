"""The start of a training replaces no model by another method, mixes no networks, and leaves nothing behind
if it fails."""

import json
import re
import shlex
import shutil
from unittest import mock

import pytest
import torch
import yaml

from nnunetv2_kd import trainers
from nnunetv2_kd.errors import KDError
from nnunetv2_kd.trainers import nnUNetTrainerKD, nnUNetTrainerKDBaseline
from nnunetv2_kd.trainers.options import resolve_options
from nnunetv2_kd.trainers.result_message import result_message
from tests.conftest import DATASET, World, copy_of, made_once
from tests.trainers.helpers import inside, make_trainer, train

QUICK = {"epochs": 1, "iterations_per_epoch": 1}
REGION = {"region_kl": {"weight": 3}}


@pytest.fixture(scope="session")
def student_world(trained_world, tmp_path_factory) -> World:
    """A world with a finished distilled student of fold 0. Do not write to it: use `student`."""

    def make(root) -> None:
        world = copy_of(trained_world, root)
        world.train("nnUNetTrainerKD", **QUICK)

    return World(made_once(tmp_path_factory, "student_world", make))


@pytest.fixture
def student(student_world, tmp_path, monkeypatch) -> World:
    return inside(copy_of(student_world, tmp_path / "student"), monkeypatch)


def fold_of(world: World, fold: int = 0, plans: str = "nnUNetPlans"):
    return world.model("nnUNetTrainerKD", plans) / f"fold_{fold}"


def state(folder) -> dict:
    """Every file in the folder, with its content."""
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


# ---- one network and one method in all folds of a model


def test_a_second_fold_of_another_size_is_refused_and_the_first_still_predicts(student):
    before = state(student.results)
    trainer = make_trainer(nnUNetTrainerKD, student, fold=1, student={"width": 0.25}, **QUICK)
    with pytest.raises(
        KDError,
        match=r"(?s)holds fold 0 of another student.*features_per_stage: \[2, 4, 8, 8\] there, "
        r"\[1, 2, 4, 4\] now.*nnUNet_kd_name=variant2 ",
    ):
        trainer.run_training()
    assert state(student.results) == before
    images = student.root / "images"
    images.mkdir()
    image = sorted((student.raw / DATASET / "imagesTr").iterdir())[0]
    shutil.copy(image, images)
    arguments = ("-d", "4", "-c", "3d_fullres", "-tr", "nnUNetTrainerKD", "-f", "0", "-device", "cpu")
    student.run("nnUNetv2_predict", "-i", images, "-o", student.root / "out", *arguments)
    assert len(list((student.root / "out").glob("*.nii.gz"))) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"terms": REGION}, "terms.region_kl.weight: none there, 3.0 now"),
        ({"seed": 1}, "seed: 0 there, 1 now"),
        ({"epochs": 5}, "epochs: 1 there, 5 now"),
        ({"optimizer": {"name": "adamw"}}, "optimizer.name: nnunet there, adamw now"),
    ],
)
def test_a_second_fold_of_another_method_is_refused(student, options, message):
    trainer = make_trainer(nnUNetTrainerKD, student, fold=1, **(QUICK | {"teacher": {"fold": 0}} | options))
    with pytest.raises(KDError, match="(?s)holds fold 0 of another student") as error:
        trainer.run_training()
    assert message in str(error.value)
    assert "teacher.fold" not in str(error.value)


def test_a_second_fold_of_the_same_method_may_have_a_teacher_of_its_own(student):
    trainer = make_trainer(nnUNetTrainerKD, student, fold=1, teacher={"fold": 0}, **QUICK)
    assert "Training done." in train(trainer)


# ---- nothing trained is replaced in silence


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"terms": REGION}, "terms.region_kl.weight: none there, 3.0 now"),
        ({"seed": 1}, "seed: 0 there, 1 now"),
        ({"student": {"width": 0.25}}, "architecture.arch_kwargs.features_per_stage: [2, 4, 8, 8] there"),
        (
            {"teacher": {"trainer": "nnUNetTrainerOther"}},
            "teacher.trainer: nnUNetTrainer there, nnUNetTrainerOther now",
        ),
    ],
    ids=["recipe", "seed", "size", "teacher"],
)
def test_a_finished_training_of_another_method_is_not_replaced(student, options, message, monkeypatch):
    before = state(student.results)
    with pytest.raises(KDError, match="holds the finished training of another student") as error:
        make_trainer(nnUNetTrainerKD, student, **(QUICK | options)).run_training()
    assert message in str(error.value)
    assert state(student.results) == before


def test_an_unfinished_training_of_another_method_is_not_replaced_and_goes_on_by_the_line(here):
    """It was interrupted in its second epoch."""
    plain = nnUNetTrainerKD.on_epoch_start

    def interrupt(trainer):
        if trainer.current_epoch == 1:
            raise KeyboardInterrupt
        plain(trainer)

    options = {"epochs": 2, "iterations_per_epoch": 1, "save_every": 1}
    with mock.patch.object(nnUNetTrainerKD, "on_epoch_start", interrupt):
        here.train("nnUNetTrainerKD", check=False, **options)
    done = here.train("nnUNetTrainerKD", check=False, **options, seed=1)
    assert "holds the unfinished training of another student" in done.stderr
    _, line, *_ = done.stderr[done.stderr.index("To go on with the unfinished one:") :].splitlines()
    log = typed(here, line.strip()).stdout
    assert "Training done." in log
    assert "Epoch 0" not in log
    assert json.loads((fold_of(here) / "kd_record.json").read_text())["options"]["seed"] == 0


def test_a_teacher_that_was_trained_again_is_another_one(student):
    file = student.model("nnUNetTrainer") / "fold_0" / "checkpoint_final.pth"
    checkpoint = torch.load(file, weights_only=False)
    torch.save(checkpoint | {"current_epoch": 7}, file)
    with pytest.raises(KDError, match=r"teacher's checkpoint, SHA-256: [0-9a-f]{64} there, [0-9a-f]{64} now"):
        make_trainer(nnUNetTrainerKD, student, **QUICK).run_training()


def test_the_same_method_takes_the_place_of_the_earlier_training_and_says_so(student):
    earlier = (fold_of(student) / "checkpoint_final.pth").read_bytes()
    log = train(make_trainer(nnUNetTrainerKD, student, **QUICK))
    assert "holds a finished training by this method, which this one replaces" in log
    assert (fold_of(student) / "replaced" / "checkpoint_final.pth").read_bytes() == earlier
    assert not (fold_of(student) / "validation").exists()  # it was the earlier one's


def test_another_method_may_take_its_place_where_that_is_meant(student, monkeypatch):
    monkeypatch.setenv("nnUNet_kd_overwrite", "1")
    log = train(make_trainer(nnUNetTrainerKD, student, **QUICK, seed=1))
    assert "by another method (nnUNet_kd_overwrite is set)" in log
    assert json.loads((fold_of(student) / "kd_record.json").read_text())["options"]["seed"] == 1


def typed(world: World, line: str, **options):
    """Run a command as a user would who has copied it, with the variables in front of it."""
    words = shlex.split(line)
    variables = dict(word.split("=", 1) for word in words if word.startswith("nnUNet_kd_"))
    return world.run(*[word for word in words if not word.startswith("nnUNet_kd_")], validate=False, **variables)


def test_every_way_out_works_as_it_is_printed(student):
    done = student.train("nnUNetTrainerKD", check=False, **QUICK, seed=1)
    assert done.returncode == 1
    named, overwritten = [line.strip() for line in done.stderr.splitlines() if "nnUNetv2_train 4" in line]
    assert "Training done." in typed(student, named).stdout
    assert json.loads((fold_of(student) / "kd_record.json").read_text())["options"]["seed"] == 0
    record = json.loads((fold_of(student, plans="nnUNetPlans_variant2") / "kd_record.json").read_text())
    assert record["options"]["seed"] == 1
    assert "which this one replaces" in typed(student, overwritten).stdout
    assert json.loads((fold_of(student) / "kd_record.json").read_text())["options"]["seed"] == 1


# ---- names and seeds


def test_name_and_seed_of_the_environment(student, monkeypatch):
    monkeypatch.setenv("nnUNet_kd_name", "small_s1")
    monkeypatch.setenv("nnUNet_kd_seed", "1")
    log = train(make_trainer(nnUNetTrainerKD, student, **QUICK, student={"width": 0.25}))
    assert f"Teacher: {student.model('nnUNetTrainer')}" in log
    fold = fold_of(student, plans="nnUNetPlans_small_s1")
    record = json.loads((fold / "kd_record.json").read_text())
    assert (record["options"]["seed"], record["options"]["name"]) == (1, "small_s1")
    monkeypatch.delenv("nnUNet_kd_name")
    again = resolve_options({}, {}, fold / "kd_options.yaml")
    assert (again.name, again.seed) == ("small_s1", 1)
    # nnU-Net's commands find the plans that -p names
    plans = json.loads(student.plans_file("nnUNetPlans_small_s1").read_text())
    assert plans["plans_name"] == "nnUNetPlans_small_s1"
    student.run("nnUNetv2_train", "4", "3d_fullres", "0", "-p", "nnUNetPlans_small_s1", "-tr", "nnUNetTrainerKD",
                "-device", "cpu", "--val", nnUNet_kd_config=str(student.options()), nnUNet_kd_seed="1")  # fmt: off
    assert (fold / "validation" / "summary.json").is_file()


def test_a_name_that_is_taken_by_another_network(student, monkeypatch):
    monkeypatch.setenv("nnUNet_kd_name", "small")
    train(make_trainer(nnUNetTrainerKD, student, **QUICK))
    with pytest.raises(KDError, match=r"(?s)The name small is taken.*features_per_stage.*nnUNet_kd_name=small2 "):
        make_trainer(nnUNetTrainerKDBaseline, student, **QUICK, student={"width": 0.25}).run_training()


@pytest.mark.parametrize("name", ["a__b", "a/b", "a b", "../x", "_a", "a_", ""])
def test_names_that_are_no_part_of_a_folder_name(here, name):
    with pytest.raises(KDError, match="name"):
        make_trainer(nnUNetTrainerKD, here, name=name)


# ---- a start that does not get to its first iteration


@pytest.mark.parametrize("break_it", ["no teacher", "no stage", "interrupted", "construction", "pretrained weights"])
def test_a_failed_start_leaves_nothing(here, break_it):
    before = state(here.results)
    options = {"no teacher": {"teacher": {"fold": 3}}, "no stage": {"terms": {"fitnet": {"stages": ["encoder.9"]}}}}
    arguments = ("-pretrained_weights", str(here.root / "none.pth")) if break_it == "pretrained weights" else ()
    patches = {
        "interrupted": ("nnunetv2_kd.trainers.mixin.DistillationMixin._distillation_step", KeyboardInterrupt),
        "construction": ("nnunetv2_kd.trainers.mixin.about_student", KDError("no")),
    }
    patch = mock.patch(patches[break_it][0], side_effect=patches[break_it][1]) if break_it in patches else mock.DEFAULT
    registered = []
    with mock.patch("atexit.register", registered.append):
        if break_it in patches:
            with patch, pytest.raises((KDError, KeyboardInterrupt)):
                make_trainer(nnUNetTrainerKD, here).run_training()
        else:
            assert here.train("nnUNetTrainerKD", *arguments, check=False, **options.get(break_it, {})).returncode == 1
        for function in registered:  # as at the end of the process
            function()
    assert state(here.results) == before
    assert not here.model("nnUNetTrainerKD").exists()


def test_a_failed_start_over_a_finished_training_leaves_that_whole(student, monkeypatch):
    """Even though nnU-Net has already written plans with another size."""
    monkeypatch.setenv("nnUNet_kd_overwrite", "1")
    before = state(student.results)
    trainer = make_trainer(nnUNetTrainerKD, student, **QUICK, student={"width": 0.25})
    with mock.patch.object(trainer, "train_step", side_effect=RuntimeError), pytest.raises(RuntimeError):
        trainer.run_training()
    after = state(student.results)
    after.pop(next((name for name in after if name.endswith("network_architecture.pdf")), ""), None)
    before.pop(next((name for name in before if name.endswith("network_architecture.pdf")), ""), None)
    assert after == before


def test_trainings_with_a_number_of_epochs_in_the_name_compare_that_number(here):
    trainer = trainers.nnUNetTrainerRegionKD_1epoch
    train(make_trainer(trainer, here, iterations_per_epoch=1))
    assert "by this method" in train(make_trainer(trainer, here, iterations_per_epoch=1))


def test_the_line_of_a_student_alone_trains_one_that_is_compared(student):
    """The command that the end of a training and the leaderboard print."""
    fold = fold_of(student)
    line = result_message(fold).splitlines()[-1].strip()
    assert "Training done." in typed(student, line).stdout
    there, now = (json.loads((f / "kd_record.json").read_text()) for f in (fold, fold_of_baseline(student)))
    assert there["training"] == now["training"]
    assert there["options"]["seed"] == now["options"]["seed"]
    assert now["teachers"] == []


def fold_of_baseline(world: World):
    return world.model("nnUNetTrainerKDBaseline") / "fold_0"


def test_options_file_holds_the_defaults_that_were_in_force(student):
    text = (fold_of(student) / "kd_options.yaml").read_text()
    options = yaml.safe_load(text)
    assert (options["epochs"], options["save_every"], options["student"]) == (1, 50, {"width": 0.5})
    assert options["teacher"]["trainer"] == "nnUNetTrainer"
    assert options["terms"]["voxel_kl"]["temperature"] == 1.0
    assert "# Optimizer: {" in text
    again = resolve_options({}, {}, fold_of(student) / "kd_options.yaml").model_dump(mode="json")
    assert again == json.loads((fold_of(student) / "kd_record.json").read_text())["options"]


def test_a_resumed_student_whose_plans_file_was_replaced(student):
    """By plan --overwrite of an older version, or by hand: the printed command puts the plans back,
    and --c continues."""
    student.run("nnUNetv2_kd", "plan", "-d", "4", "-c", "3d_fullres", "-o", "nnUNetPlansSmall", "--width", "0.5")
    student.train("nnUNetTrainerKD", "-p", "nnUNetPlansSmall", **QUICK, validate=False)
    other = student.plans_file("nnUNetPlansOther")
    student.run("nnUNetv2_kd", "plan", "-d", "4", "-c", "3d_fullres", "-o", other.stem, "--width", "0.25")
    replaced = json.loads(other.read_text()) | {"plans_name": "nnUNetPlansSmall"}
    student.plans_file("nnUNetPlansSmall").write_text(json.dumps(replaced))
    done = student.train("nnUNetTrainerKD", "-p", "nnUNetPlansSmall", "--c", **QUICK, check=False)
    program, source, target = shlex.split(done.stderr.strip().split("trained with: ")[1])
    assert program == "cp"
    shutil.copy(source, target)
    assert student.train("nnUNetTrainerKD", "-p", "nnUNetPlansSmall", "--c", **QUICK, validate=False).returncode == 0


def test_what_a_training_says_of_its_end(student):
    log = train(make_trainer(nnUNetTrainerKD, student, epochs=2, iterations_per_epoch=6, save_every=1, name="told"))
    assert re.search(r"About \d+ s left until the end of the training \(1 epoch\); the teacher takes \d+ % of a", log)
    assert re.search(
        r"Log: /.*fold_0/training_log_.*txt\. Curves, beside it: progress.png; of the .*kd_progress.png", log
    )
