"""What a training keeps if it is interrupted, cannot write, runs out of memory, or meets another training; and how it
can continue."""

import errno
import json
import os
import shlex
import shutil
from pathlib import Path

import pytest
import torch

from nnunetv2_kd.cli.main import main
from nnunetv2_kd.errors import KDError
from nnunetv2_kd.interruption import Terminated
from nnunetv2_kd.nnunet.locks import LOCK_OF_TRAINING, hold_lock
from nnunetv2_kd.nnunet.room_on_disk import explain_failed_writes
from nnunetv2_kd.trainers import nnUNetTrainerKD, nnUNetTrainerKDBaseline, out_of_space
from nnunetv2_kd.trainers.error_exit import Interrupted
from nnunetv2_kd.trainers.messages import about_no_better
from nnunetv2_kd.trainers.mixin import DistillationMixin
from tests.conftest import DATASET
from tests.room_on_disk import fill, small_disk
from tests.trainers.helpers import inside, make_trainer, train


@pytest.fixture
def stored(stored_world, monkeypatch):
    return inside(stored_world, monkeypatch)


def ends_in(monkeypatch, epoch, error, iteration=1):
    """Let trainings end with an error in the middle of an epoch."""
    plain = DistillationMixin.plain_train_step

    def step(trainer, batch):
        if (trainer.current_epoch, trainer._iteration) == (epoch, iteration):
            raise error
        return plain(trainer, batch)

    monkeypatch.setattr(DistillationMixin, "plain_train_step", step)


def interrupted_in(epoch, monkeypatch, trainer_class, world, **options):
    """A trainer whose training Ctrl-C ended in the middle of an epoch."""
    trainer = make_trainer(trainer_class, world, **options)
    ends_in(monkeypatch, epoch, KeyboardInterrupt())
    with pytest.raises(Interrupted):
        trainer.run_training()
    return trainer


def resumed_from(trainer, world, **options):
    again = make_trainer(type(trainer), world, **options)
    again.load_checkpoint(f"{trainer.output_folder}/checkpoint_latest.pth")
    return again


def replace_teacher(world):
    file = world.model("nnUNetTrainer") / "fold_0" / "checkpoint_final.pth"
    checkpoint = torch.load(file, weights_only=False)
    for name, value in checkpoint["network_weights"].items():
        if "seg_layers" in name:
            value += 1.0
    torch.save(checkpoint, file)


@pytest.mark.parametrize(("error", "words"), [(Terminated(), "Interrupted in epoch 2"), (ZeroDivisionError(), None)])
def test_an_early_end_keeps_the_epochs_since_the_last_checkpoint(here, monkeypatch, error, words):
    """As on a cluster, where SIGTERM comes before the time limit: the resumed training equals one that
    was never interrupted."""
    options = {"epochs": 4, "iterations_per_epoch": 2, "ema": 0.9}
    whole = make_trainer(nnUNetTrainerKD, here, **options)
    train(whole)
    shutil.rmtree(here.model("nnUNetTrainerKD"))
    cut = make_trainer(nnUNetTrainerKD, here, **options)
    with monkeypatch.context() as patched:
        ends_in(patched, 2, error)
        with pytest.raises(Interrupted if words else ZeroDivisionError, match=words):
            cut.run_training()
    assert torch.load(f"{cut.output_folder}/checkpoint_latest.pth", weights_only=False)["current_epoch"] == 2
    resumed = resumed_from(cut, here, **options)
    assert resumed.current_epoch == 2  # not told by the log: trainings of one second share its file
    train(resumed)
    for one, other in zip(resumed.network.parameters(), whole.network.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-6)
    losses = [t.logger.get_checkpoint()["train_losses"] for t in (resumed, whole)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


@pytest.mark.parametrize(
    "content", [b"", b"epoch,nnUNet,voxel_kl\n0,0.5", b"\xff\xfe"], ids=["empty", "cut", "no text"]
)
def test_curves_that_cannot_be_read_do_not_stop_a_resumed_training(here, monkeypatch, content):
    options = {"epochs": 3, "save_every": 1}
    with monkeypatch.context() as patched:
        trainer = interrupted_in(1, patched, nnUNetTrainerKD, here, **options)
    curves = Path(trainer.output_folder) / "kd_progress.csv"
    curves.write_bytes(content)
    resumed = resumed_from(trainer, here, **options)
    assert f"WARNING: {curves}" in train(resumed)
    assert [float(line.split(",")[0]) for line in curves.read_text().splitlines()[1:]] == [1, 2]
    kept = [file for file in curves.parent.glob("kd_progress*") if file.suffix != ".png" and file != curves]
    assert [file.read_bytes() for file in kept] == [content]


def test_nothing_older_replaces_what_nnunet_has_saved(here, monkeypatch):
    options = {"epochs": 4, "save_every": 2}
    trainer = interrupted_in(2, monkeypatch, nnUNetTrainerKDBaseline, here, **options)
    assert trainer._unsaved._content is None
    assert torch.load(f"{trainer.output_folder}/checkpoint_latest.pth", weights_only=False)["current_epoch"] == 2


def test_a_teacher_replaced_in_place_is_refused(here, monkeypatch):
    options = {"epochs": 3, "save_every": 1}
    trainer = interrupted_in(1, monkeypatch, nnUNetTrainerKD, here, **options)
    before = json.loads((Path(trainer.output_folder) / "kd_record.json").read_text())["teachers"][0]["sha256"]
    replace_teacher(here)
    monkeypatch.setattr("sys.argv", ["nnUNetv2_train", "4", "3d_fullres", "0", "-tr", "nnUNetTrainerKD", "--c"])
    again = resumed_from(trainer, here, **options)
    with pytest.raises(KDError, match=f"until now, SHA-256: {before}\n  now, SHA-256: ") as refused:
        again.run_training()
    line = str(refused.value).splitlines()[-1]
    assert "nnUNet_kd_overwrite=1" in line
    assert "--c" not in shlex.split(line)


def test_one_training_of_a_fold_at_a_time(here):
    trainer = make_trainer(nnUNetTrainerKDBaseline, here)
    fold = Path(trainer.output_folder)
    fold.mkdir(parents=True, exist_ok=True)
    with hold_lock(fold / LOCK_OF_TRAINING):
        before = sorted(fold.iterdir())
        with pytest.raises(KDError, match="Another process trains or validates"):
            make_trainer(nnUNetTrainerKDBaseline, here)
        with pytest.raises(KDError, match="Another process trains or validates"):
            trainer.run_training()
        with pytest.raises(KDError, match="Another process trains or validates"):
            trainer.perform_actual_validation()
        assert sorted(fold.iterdir()) == before
    train(trainer)


def test_a_store_is_not_written_while_a_training_reads_it(stored, monkeypatch, capsys):
    done = []
    plain = DistillationMixin.on_epoch_start

    def store_now(trainer):
        plain(trainer)
        done.append(main(["store", "-d", "4", "-device", "cpu", "--overwrite"]))

    monkeypatch.setattr(DistillationMixin, "on_epoch_start", store_now)
    train(make_trainer(nnUNetTrainerKD, stored, stored_teacher="fold_0", epochs=1))
    assert done == [1]
    assert "Trainings are reading" in capsys.readouterr().err


def test_a_training_does_not_read_a_store_that_is_written(stored):
    folder = stored.preprocessed / DATASET / "nnUNetPlans_3d_fullres_teacher_fold_0"
    trainer = make_trainer(nnUNetTrainerKD, stored, stored_teacher="fold_0")
    with hold_lock(folder / "lock_of_readers"), pytest.raises(KDError, match="is being written: "):
        trainer.run_training()


def full_disk(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def torch_on_a_full_disk(*_, **__):
    raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0")


@pytest.mark.parametrize("save", [full_disk, torch_on_a_full_disk])
def test_a_full_disk_keeps_the_last_checkpoint_whole(here, monkeypatch, save):
    trainer = make_trainer(nnUNetTrainerKDBaseline, here, epochs=3, save_every=1)
    plain = type(trainer).on_epoch_start

    def fills_up(trained):
        plain(trained)
        if trained.current_epoch == 1:
            monkeypatch.setattr("torch.save", save)

    monkeypatch.setattr(type(trainer), "on_epoch_start", fills_up)
    with pytest.raises(
        KDError, match=r"the disk or the quota is full[\s\S]*checkpoint_latest.pth is complete. To continue from"
    ):
        trainer.run_training()
    monkeypatch.undo()
    folder = Path(trainer.output_folder)
    assert torch.load(folder / "checkpoint_latest.pth", weights_only=False)["current_epoch"] == 1
    assert not list(folder.glob("*.unfinished"))


def test_a_disk_that_is_really_full(here, monkeypatch):
    """A file system of a few megabytes, filled in the second epoch; with room again the training goes on."""
    with small_disk(here.results, 20):
        trainer = make_trainer(nnUNetTrainerKD, here, epochs=3, save_every=1)
        plain = type(trainer).on_epoch_start

        def fills_up(trained):
            plain(trained)
            if trained.current_epoch == 1:
                fill(here.results)

        monkeypatch.setattr(type(trainer), "on_epoch_start", fills_up)
        with pytest.raises(KDError, match=r"the disk or the quota is full \(0 MiB free\)[\s\S]*checkpoint_latest.pth"):
            trainer.run_training()
        folder = Path(trainer.output_folder)
        assert torch.load(folder / "checkpoint_latest.pth", weights_only=False)["current_epoch"] == 1
        assert not list(folder.glob("*.unfinished"))
        monkeypatch.setattr(type(trainer), "on_epoch_start", plain)
        (here.results / "filling").unlink()
        train(resumed_from(trainer, here, epochs=3, save_every=1))
        assert (folder / "checkpoint_final.pth").is_file()
        assert [float(row.split(",")[0]) for row in (folder / "kd_progress.csv").read_text().split()[1:]] == [0, 1, 2]


@pytest.mark.parametrize(
    ("number", "words"), [(errno.EROFS, "its file system is read-only now"), (errno.EACCES, r"chmod -R u\+w '")]
)
def test_results_that_cannot_be_written_any_more(here, monkeypatch, number, words):
    plain = os.replace

    def refuse(source, target):
        if str(target).endswith(".pth"):
            raise OSError(number, "no")
        plain(source, target)

    trainer = make_trainer(nnUNetTrainerKDBaseline, here, epochs=2, save_every=1)
    monkeypatch.setattr("nnunetv2_kd.trainers.mixin.os.replace", refuse)
    with pytest.raises(KDError, match=words):
        trainer.run_training()


@pytest.mark.parametrize("who", ["teacher", "student"])
@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), MemoryError()]
)
def test_out_of_memory_says_whose_and_what_needs_less(here, monkeypatch, who, error):
    def too_large(*_):
        raise error

    trainer = make_trainer(nnUNetTrainerKD, here, epochs=1)
    target = "nnunetv2_kd.teachers.running.RunningTeacher.run"
    if who == "student":
        target = "nnunetv2_kd.trainers.mixin.DistillationMixin._distillation_step"
        monkeypatch.setattr(target, too_large)
    else:
        plain = trainer._taught_step

        def from_now_on(*arguments):
            monkeypatch.setattr(target, too_large)
            return plain(*arguments)

        monkeypatch.setattr(trainer, "_taught_step", from_now_on)
    with pytest.raises(KDError, match=f"enough memory for a step of the {who}, at 2 patches of 16x24x16") as message:
        trainer.run_training()
    assert ("nnUNetv2_kd store -d 4 -c 3d_fullres -f 0" in str(message.value)) is (who == "teacher")
    assert str(message.value).endswith("Nothing was saved yet: the same command starts again.")


def test_other_errors_are_not_taken_for_a_lack_of_room(tmp_path):
    for error in (RuntimeError("shape mismatch"), OSError(errno.ENOENT, "gone")):
        with pytest.raises(type(error)), explain_failed_writes(tmp_path, str):
            raise error
    with pytest.raises(RuntimeError, match="shape"), out_of_space.explain_out_of_memory("the teacher", None):
        raise RuntimeError("shape mismatch")


def test_a_teacher_that_is_no_better_is_said_once(here, monkeypatch):
    monkeypatch.setattr("nnunetv2_kd.teachers.running.mean_of_present", lambda dice: 1e-9)
    log = train(make_trainer(nnUNetTrainerKD, here, epochs=3, iterations_per_epoch=1))
    assert log.count("has reached its teacher's (0.0000)") <= 1
    assert about_no_better(0.8, 0.7)[0].startswith("NOTE: the student's pseudo Dice (running mean 0.8000)")
    assert about_no_better(0.6, 0.7) == about_no_better(0.8, None) == about_no_better(0.0, 0.0) == []


def test_an_export_and_a_leaderboard_during_a_training(here, monkeypatch, capsys):
    """Checkpoints are replaced whole, so that either is there: what is exported is the last one. A fold that is not
    validated yet is not in the leaderboard."""
    done, plain = {}, DistillationMixin.on_epoch_start
    export = ["export", "-d", "4", "-c", "3d_fullres", "-tr", "nnUNetTrainerKD", "-f", "0", "--format", "nnunet"]

    def meanwhile(trainer):
        plain(trainer)
        if trainer.current_epoch == 2:
            done["final"] = main([*export, "-o", str(here.root / "final")]), capsys.readouterr().err
            latest = [*export, "-chk", "checkpoint_latest.pth", "--cases", "1", "-o", str(here.root / "latest")]
            done["latest"] = main(latest), capsys.readouterr().err
            done["board"] = main(["leaderboard", "-d", "4", "-np", "1"]), capsys.readouterr()

    monkeypatch.setattr(DistillationMixin, "on_epoch_start", meanwhile)
    trainer = make_trainer(nnUNetTrainerKD, here, epochs=3, save_every=1)
    train(trainer)
    status, told = done["final"]
    assert status == 1
    assert "checkpoint_final.pth" in told
    assert done["latest"] == (0, done["latest"][1])
    (exported,) = (here.root / "latest").rglob("checkpoint_final.pth")
    assert torch.load(exported, weights_only=False)["current_epoch"] == 2
    assert done["board"][0] == 0
    assert "nnUNetTrainerKD__nnUNetPlans__3d_fullres, fold 0: is being trained by " in done["board"][1].out
    assert (Path(trainer.output_folder) / "checkpoint_final.pth").is_file()
