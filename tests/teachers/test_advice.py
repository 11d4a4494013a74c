"""The commands to type if plans do not fit together: the test types them, and then they do."""

import json
import shlex
import subprocess
import sys

import pytest
from nnunetv2.experiment_planning.plans_for_pretraining.move_plans_between_datasets import move_plans_between_datasets

from nnunetv2_kd.config import TeacherOptions
from nnunetv2_kd.errors import KDError
from nnunetv2_kd.students.shrink import shrink_plans
from nnunetv2_kd.teachers.advice import named_labels
from nnunetv2_kd.teachers.find import StudentIdentity
from nnunetv2_kd.teachers.load import load_teacher
from tests.small_networks import DATASET_JSON, plans
from tests.teachers.test_released_models import NAME, make_model, zipped
from tests.untrained_models import add_images

# what unzip -p does, which is not on every machine
UNZIP = "import sys, zipfile; sys.stdout.buffer.write(zipfile.ZipFile(sys.argv[1]).read(sys.argv[2]))"
MINE, OTHER = "Dataset040_Mine", "Dataset004_Other"
STUDENT = StudentIdentity(MINE, "nnUNetPlans", "3d_fullres", 0)


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Two datasets with different spacings, and a model of the second one."""
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    for dataset, spacing in ((MINE, 2.0), (OTHER, 1.0)):
        content = plans(features=(4, 8)) | {"dataset_name": dataset, "image_reader_writer": "SimpleITKIO"}
        content["configurations"]["3d_fullres"]["spacing"] = [spacing] * 3
        (tmp_path / "preprocessed" / dataset).mkdir(parents=True)
        (tmp_path / "preprocessed" / dataset / "nnUNetPlans.json").write_text(json.dumps(content))
    add_images(tmp_path / "raw" / MINE / "imagesTr", 1)
    (tmp_path / "raw" / MINE / "dataset.json").write_text(json.dumps(DATASET_JSON))
    model = make_model(tmp_path / "results" / OTHER / NAME)
    (model / "plans.json").write_bytes((tmp_path / "preprocessed" / OTHER / "nnUNetPlans.json").read_bytes())
    return tmp_path


def plans_of(folders, dataset, name="nnUNetPlans"):
    return json.loads((folders / "preprocessed" / dataset / f"{name}.json").read_text())


def load(student_plans, **options):
    return load_teacher(TeacherOptions(**options), STUDENT, student_plans, DATASET_JSON, [], True)


def test_another_spacing(folders):
    teacher = folders / "results" / OTHER / NAME
    with pytest.raises(KDError, match=r"spacing: teacher \[1.0, 1.0, 1.0\], student \[2.0, 2.0, 2.0\]") as caught:
        load(plans_of(folders, MINE), folder=teacher)
    command = next(line for line in str(caught.value).splitlines() if "nnUNetv2_move_plans" in line)
    assert "nnUNetv2_preprocess -d 40 -plans_name nnUNetPlansFrom4 -c 3d_fullres" in str(caught.value)
    given = shlex.split(command)[1:]
    words = dict(zip(given[::2], given[1::2], strict=True))
    move_plans_between_datasets(words["-s"], int(words["-t"]), words["-sp"], words["-tp"])
    assert load(plans_of(folders, MINE, "nnUNetPlansFrom4"), folder=teacher).record.folder == str(teacher)


def test_another_spacing_of_a_model_whose_dataset_is_not_here(folders):
    (folders / "preprocessed" / OTHER / "nnUNetPlans.json").unlink()
    teacher = folders / "results" / OTHER / NAME
    with pytest.raises(KDError, match=rf"mkdir -p '.*{OTHER}' && cp '{teacher}/plans.json' '.*nnUNetPlans.json'\n"):
        load(plans_of(folders, MINE), folder=teacher)


def test_another_spacing_of_a_zip(folders):
    teacher = zipped(folders / "results" / OTHER / NAME)
    (folders / "preprocessed" / OTHER / "nnUNetPlans.json").unlink()
    with pytest.raises(KDError) as caught:
        load(plans_of(folders, MINE), folder=teacher)
    line = next(line for line in str(caught.value).splitlines() if "unzip" in line)
    subprocess.run(line.replace("unzip -p", f"'{sys.executable}' -c '{UNZIP}'"), shell=True, check=True)
    assert plans_of(folders, OTHER)["dataset_name"] == OTHER


def test_other_labels_and_other_channels_are_not_mended_by_the_teachers_plans(folders):
    teacher = folders / "results" / OTHER / NAME
    (teacher / "dataset.json").write_text(json.dumps(DATASET_JSON | {"labels": {"background": 0, "c": 1, "b": 2}}))
    with pytest.raises(KDError, match=r"nnUNetv2_kd store -d 40 .* --labels a=") as caught:
        load(plans_of(folders, MINE), folder=teacher)
    assert "nnUNetv2_move_plans" not in str(caught.value)
    (teacher / "dataset.json").write_text(json.dumps(DATASET_JSON | {"labels": {"background": 0, "c": 1, "d": 2}}))
    with pytest.raises(
        KDError, match=r"No label has the same name. For each .*: labels: \{a: \[THEIR_LABEL\]\}.* c, d"
    ):
        load(plans_of(folders, MINE), folder=teacher)
    (teacher / "dataset.json").write_text(json.dumps(DATASET_JSON | {"channel_names": {"0": "CT"}}))
    with pytest.raises(KDError, match=r"A store is not possible either. .*have no channel CT.*--channels"):
        load(plans_of(folders, MINE), folder=teacher)


def moved_student(folders):
    """Plans that were shrunken there and moved here."""
    return shrink_plans(plans_of(folders, OTHER), {"3d_fullres": 0.5}, name="SmallFrom4") | {"dataset_name": MINE}


def test_moved_plans_and_a_model_that_fits(folders):
    teacher = folders / "results" / OTHER / NAME
    student = make_model(teacher.with_name("nnUNetTrainerRegionKD__nnUNetPlans__3d_fullres"))
    shrunken = shrink_plans(plans_of(folders, OTHER), {"3d_fullres": 0.5})
    (student / "plans.json").write_text(json.dumps(shrunken))
    with pytest.raises(KDError) as caught:
        load(moved_student(folders))
    message = str(caught.value)
    assert "nnUNetv2_train 40 3d_fullres 0\n" not in message
    assert "These trained models fit; name one in the options file:" in message
    assert f"  - teacher: {{folder: '{teacher}', fold: 0}}" in message
    assert "RegionKD" not in message  # a student itself
    assert load(moved_student(folders), folder=teacher).record.folder == str(teacher)


def test_moved_plans_and_a_teacher_that_was_trained_here(folders):
    mine = make_model(folders / "results" / MINE / NAME)
    (mine / "plans.json").write_text(json.dumps(plans_of(folders, MINE)))
    with pytest.raises(KDError, match=r"(?s)spacing: teacher \[2.0.*These trained models fit.*Dataset004_Other"):
        load(moved_student(folders))


def test_moved_plans_and_no_model(folders):
    student = moved_student(folders)
    (folders / "results" / OTHER / NAME / "plans.json").unlink()
    with pytest.raises(KDError) as caught:
        load(student)
    message = str(caught.value)
    assert f"nnUNetv2_move_plans_between_datasets -s {OTHER} -t 40 -sp nnUNetPlans -tp nnUNetPlansFrom4" in message
    assert "nnUNetv2_train 40 3d_fullres 0 -p nnUNetPlansFrom4 -tr nnUNetTrainer" in message
    (folders / "preprocessed" / OTHER / "nnUNetPlans.json").unlink()
    with pytest.raises(KDError, match="No trained model and no plans under nnUNet_preprocessed fit the student"):
        load(student)


def test_plans_of_this_dataset_keep_the_line_that_trains_a_teacher(folders):
    with pytest.raises(KDError, match="Train it with: nnUNetv2_train 40 3d_fullres 0( -device cpu)?\n"):
        load(plans_of(folders, MINE))


def test_no_line_trains_with_a_trainer_that_is_not_there(folders):
    with pytest.raises(
        KDError, match="There is no trainer nnUNetTrainerTinny either: is its name spelt right"
    ) as reported:
        load(plans_of(folders, MINE), trainer="nnUNetTrainerTinny")
    assert "Train it with" not in str(reported.value)


def test_regions_in_another_order_are_matched_by_name(folders):
    """The heads of regions are in the order of the regions, so equal names alone are not enough."""
    regions = {"background": 0, "whole": [1, 2], "core": [2]}
    turned = {"background": 0, "core": [2], "whole": [1, 2]}
    student, teacher = (
        DATASET_JSON | {"labels": labels, "regions_class_order": [1, 2]} for labels in (regions, turned)
    )
    assert named_labels(student, student) == []
    [line] = named_labels(teacher, student)
    assert line.endswith("labels: {whole: [whole], core: [core]}")
