import gc
import json
import shlex
import shutil
import subprocess
from unittest import mock

import pytest

from nnunetv2_kd.cli.doctor import data_workers
from nnunetv2_kd.cli.main import import_command, main
from nnunetv2_kd.interruption import Terminated
from tests.conftest import DATASET
from tests.small_networks import DATASET_JSON, plans


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """A planned dataset without images; enough for planning students."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.delenv("nnUNet_kd_config", raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    dataset = tmp_path / "nnUNet_preprocessed" / "Dataset999_Test"
    dataset.mkdir()
    (dataset / "nnUNetPlans.json").write_text(json.dumps(plans()))
    (dataset / "dataset.json").write_text(json.dumps(DATASET_JSON))
    return tmp_path


def student_of(folders, name="nnUNetPlansStudent"):
    return json.loads((folders / "nnUNet_preprocessed" / "Dataset999_Test" / f"{name}.json").read_text())


def test_plan_writes_plans_and_shows_both_sides(folders, capsys):
    assert main(["plan", "-d", "999"]) == 0
    out = capsys.readouterr().out
    for words in (
        "width 0.5",
        "parameters",
        "GFLOPs per patch",
        "activation memory",
        "nnUNetPlansStudent",
        "nnUNetv2_train 999 3d_fullres 0 -p nnUNetPlansStudent -tr nnUNetTrainerRegionKD",
    ):
        assert words in out
    student = student_of(folders)
    assert student["kd_student"]["width"] == {"2d": 0.5, "3d_fullres": 0.5, "3d_fullres_bs4": 0.5}
    assert student["configurations"]["3d_fullres"]["data_identifier"] == "nnUNetPlans_3d_fullres"


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ([], ["3d_fullres", "3d_fullres_bs4"]),  # nobody trains 2d on 3D images without having asked for it
        (["-c", "2d", "3d_fullres"], ["2d", "3d_fullres"]),
        (["-c", "2d"], ["2d"]),
    ],
)
def test_plan_prints_a_line_per_configuration(folders, capsys, asked, message):
    assert main(["plan", "-d", "999", *asked]) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines() if "nnUNetv2_train 999" in line]
    assert [line.split()[2] for line in lines] == message


@pytest.mark.parametrize("asked", [["--params", "1"], ["--params", "100M"], ["--params", "0.97"], ["--flops", "100G"]])
def test_plan_refuses_a_student_that_is_nearly_its_teacher(folders, capsys, asked):
    assert main(["plan", "-d", "999", "-c", "3d_fullres", *asked]) == 1
    error = capsys.readouterr().err
    assert f"{asked[0].strip('-')}: {asked[1]} asks for at most" in error
    assert "Ask for less: between" in error
    assert not (folders / "nnUNet_preprocessed" / "Dataset999_Test" / "nnUNetPlansStudent.json").exists()


def test_plan_keeps_plans_that_a_model_stands_on(folders, capsys):
    assert main(["plan", "-d", "999"]) == 0
    before = student_of(folders)
    fold = folders / "nnUNet_results" / "Dataset999_Test" / "nnUNetTrainerKD__nnUNetPlansStudent__2d" / "fold_0"
    fold.mkdir(parents=True)
    (fold / "checkpoint_best.pth").touch()
    capsys.readouterr()
    for more in ([], ["--overwrite"]):
        assert main(["plan", "-d", "999", "--width", "0.25", *more]) == 1
        error = capsys.readouterr().err
        assert "because trained models need it" in error
        assert "nnUNetTrainerKD__nnUNetPlansStudent__2d" in error
        assert "--overwrite" not in error
    assert student_of(folders) == before
    way_out = error.split("Choose another name: ")[1].split()
    assert main(["plan", "-d", "999", "--width", "0.25", *way_out]) == 0


def test_help_says_no_default_of_none(capsys):
    for command in ("plan", "split-teachers"):
        with pytest.raises(SystemExit):
            main([command, "-h"])
        assert "default: None" not in capsys.readouterr().out


def test_plan_for_one_configuration_by_budget(folders, capsys):
    assert main(["plan", "-d", "999", "-c", "3d_fullres", "--flops", "0.2", "-o", "Small", "--batch-size", "4"]) == 0
    student = student_of(folders, "Small")
    assert list(student["kd_student"]["width"]) == ["3d_fullres"]
    assert student["configurations"]["3d_fullres"]["batch_size"] == 4
    assert student["configurations"]["2d"] == plans()["configurations"]["2d"]
    ratio = capsys.readouterr().out.split("GFLOPs per patch")[1].split("│")[3]
    assert float(ratio) <= 0.2


def test_plan_offers_a_better_shape_to_narrow_students(folders, capsys):
    """Two channels at full resolution: the command is printed, works, and its student is not offered another."""
    assert main(["plan", "-d", "999", "-c", "3d_fullres", "--width", "0.25"]) == 0
    [line] = [line for line in capsys.readouterr().out.splitlines() if "--features" in line]
    assert "-o nnUNetPlansStudentWide" in line
    assert main(shlex.split(line)[1:]) == 0
    assert "--features" not in capsys.readouterr().out
    made = [student_of(folders, name) for name in ("nnUNetPlansStudent", "nnUNetPlansStudentWide")]
    narrow, wide = (m["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"] for m in made)
    assert wide["features_per_stage"] == [2 * channels for channels in narrow["features_per_stage"]]
    assert set(wide["n_conv_per_stage"]) == {1}


def test_plan_keeps_a_file_that_is_there(folders, capsys):
    assert main(["plan", "-d", "999"]) == 0
    before = student_of(folders)
    assert main(["plan", "-d", "999", "--width", "0.25"]) == 1
    assert "already exists and was kept. Add --overwrite" in capsys.readouterr().err
    assert student_of(folders) == before
    assert main(["plan", "-d", "999", "--width", "0.25", "--overwrite"]) == 0
    assert student_of(folders) != before


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["-d", "5"], "There is no dataset 5"),
        (["-d", "hippocampus"], "There is no dataset hippocampus"),
        (["-d", "999", "-p", "nnUNetOther"], "Plans in this folder: nnUNetPlans"),
        (["-d", "999", "-c", "3d_lowres"], "no configuration '3d_lowres', only 2d, 3d_fullres"),
        (["-d", "999", "--width", "0.01"], "leaves a stage without channels"),
        (["-d", "999", "--width", "2"], "width: must be at most 1 (found 2.0)"),
        (["-d", "999", "--width", "0.5", "--params", "1M"], "give one of width, params, flops, features and latency"),
        (["-d", "999", "--params", "tiny"], "expected a size"),
        (["-d", "999", "--convs-per-stage", "0"], "convs_per_stage"),
        (["-d", "999", "--batch-size", "0"], "--batch-size must be at least 1"),
        (["-d", "999", "-o", "nnUNetPlans"], "cannot have the teacher's name"),
    ],
)
def test_plan_refuses(folders, capsys, flags, expected):
    assert main(["plan", *flags]) == 1
    error = capsys.readouterr().err
    assert error.startswith("Error: ")
    assert expected in error


def test_plan_without_preprocessed(folders, capsys, monkeypatch):
    monkeypatch.delenv("nnUNet_preprocessed")
    assert main(["plan", "-d", "999"]) == 1
    assert "export nnUNet_preprocessed=" in capsys.readouterr().err


def test_a_size_in_the_teachers_plans_is_not_asked_for_again(folders):
    """Options in the teacher's plans are copied to the student's plans, except for the size, which the
    plans now have."""
    file = folders / "nnUNet_preprocessed" / "Dataset999_Test" / "nnUNetPlans.json"
    file.write_text(json.dumps(plans() | {"kd": {"student": {"width": 0.25}, "epochs": 5}}))
    assert main(["plan", "-d", "999"]) == 0
    assert student_of(folders)["kd"] == {"epochs": 5}


def test_plan_of_damaged_plans(folders, capsys):
    (folders / "nnUNet_preprocessed" / "Dataset999_Test" / "nnUNetPlans.json").write_text("{")
    assert main(["plan", "-d", "999"]) == 1
    assert "is not valid JSON" in capsys.readouterr().err


def test_doctor_is_content(folders, capsys):
    fold = folders / "nnUNet_results" / "Dataset999_Test" / "nnUNetTrainer__nnUNetPlans__3d_fullres" / "fold_3"
    fold.mkdir(parents=True)
    (fold / "checkpoint_final.pth").touch()
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    for words in (
        "nnunetv2_kd",
        "torch",
        "automatic; nnU-Net finds nnUNetTrainerRegionKD",
        "nnUNet_preprocessed",
        "nnUNetTrainer__nnUNetPlans__3d_fullres (fold 3)",
        "Nothing would stop a training",
    ):
        assert words in out


def test_doctor_names_what_is_wrong_and_what_mends_it(folders, capsys, monkeypatch):
    options = folders / "options.yaml"
    options.write_text("epochs: -3\n")
    monkeypatch.delenv("nnUNet_raw")
    monkeypatch.setenv("nnUNet_results", str(folders / "not_there"))
    monkeypatch.setenv("nnUNet_kd_config", str(options))
    found = subprocess.CompletedProcess([], 0, "", "")  # the process that looks for trainers, as when all is well
    monkeypatch.setattr("nnunetv2_kd.cli.doctor.subprocess", mock.Mock(run=mock.Mock(return_value=found)))
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "preprocessing needs it, training does not" in out
    assert f"nnUNet_results: mkdir -p {folders / 'not_there'}" in out
    assert f"options: correct {options}, or: unset nnUNet_kd_config" in out
    assert "2 would stop a training" in out


def test_doctor_tells_of_the_setting_with_which_nnunet_cannot_plan(monkeypatch):
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    (finding,) = data_workers()
    assert "nnUNetv2_plan_experiment fails" in finding.found
    assert finding.mend == ""  # it stops no training
    monkeypatch.setenv("nnUNet_n_proc_DA", "12")
    assert data_workers() == []


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt, 130), (Terminated, 143)])
def test_an_interrupted_command_ends_with_one_line(folders, capsys, monkeypatch, error, status):
    def interrupted(_):
        raise error

    monkeypatch.setattr("nnunetv2_kd.cli.leaderboard.run", interrupted)
    assert main(["leaderboard", "-d", "4"]) == status
    assert capsys.readouterr().err.startswith("\nInterrupted. No page and no table was written.")


def test_doctor_without_discovery(folders, capsys, monkeypatch):
    monkeypatch.setenv("nnUNet_kd_discovery", "0")
    monkeypatch.delenv("nnUNet_extTrainer", raising=False)
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "switched off by nnUNet_kd_discovery=0" in out
    assert 'discovery: export nnUNet_extTrainer="' in out


def test_help_and_version(capsys):
    for flags in (["--help"], ["--version"], ["plan", "--help"], ["doctor", "--help"], ["demo", "--help"]):
        with pytest.raises(SystemExit) as caught:
            main(flags)
        assert caught.value.code == 0
    assert "nnunetv2_kd 0." in capsys.readouterr().out


@pytest.mark.commands
def test_a_planned_student_keeps_the_preprocessed_data(world):
    """The command as a user types it; training reads the teacher's data and preprocesses nothing."""
    before = sorted(f.name for f in (world.preprocessed / DATASET).iterdir())
    done = world.run(
        "nnUNetv2_kd", "plan", "-d", "4", "-c", "3d_fullres", "--params", "0.5", "-o", "Half", installed=True
    )
    assert "Written" in done.stdout
    shutil.rmtree(world.raw)
    after = sorted(f.name for f in (world.preprocessed / DATASET).iterdir())
    assert after == sorted([*before, "Half.json"])
    world.train("nnUNetTrainerKDBaseline", "-p", "Half", epochs=1, validate=False)


@pytest.mark.parametrize("whole_process", [True, False])
def test_garbage_is_collected_again_once_a_command_is_imported(whole_process):
    before = gc.get_freeze_count()
    try:
        assert import_command("split-teachers", whole_process).__name__ == "nnunetv2_kd.cli.split_teachers"
        assert gc.isenabled()
        assert (gc.get_freeze_count() > before) == whole_process
    finally:
        gc.unfreeze()
