"""``nnUNetv2_kd unlabelled`` as its users type it, on bundled cases and a tiny trained teacher."""

import json
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
import yaml

from tests.conftest import DATA, DATASET

NAME = "Dataset104_HippocampusTeacherLabels"
SCANS = 3


@pytest.fixture
def scans(tmp_path):
    """Bundled images that are not among the world's labelled cases; their labels are not used."""
    folder = tmp_path / "scans"
    folder.mkdir()
    for file in sorted((DATA / "imagesTr").glob("*.nii.gz"))[10 : 10 + SCANS]:
        shutil.copyfile(file, folder / file.name)
    return folder


def unlabelled(world, scans, *flags, out="104", check=True):
    command = ["unlabelled", "-i", str(scans), "-o", out, "-device", "cpu", "--disable_tta", *flags]
    return world.run("nnUNetv2_kd", *command, check=check)


def json_of(world, name=NAME):
    return json.loads((world.raw / name / "dataset.json").read_text())


def voxels(file):
    return sitk.GetArrayFromImage(sitk.ReadImage(str(file)))


@pytest.mark.commands
def test_labelled_cases_and_scans_become_a_dataset_that_trains(world, scans):
    shutil.copytree(world.model("nnUNetTrainer") / "fold_0", world.model("nnUNetTrainer") / "fold_1")
    names = sorted(file.name.removesuffix("_0000.nii.gz") for file in scans.iterdir())
    splits = json.loads((world.preprocessed / DATASET / "splits_final.json").read_text())
    done = unlabelled(world, scans, "-d", "4", "-f", "0", "--confidence", "0.5")

    dataset = json_of(world)
    assert dataset["numTraining"] == 6 + SCANS
    assert dataset["labels"]["ignore"] == 3
    message = dataset["teacher_labels"]
    assert message["cases"] == names
    assert message["left_out"] == []
    assert message["validation"] == "labels of people"
    assert [teacher["fold"] for teacher in message["teachers"]] == ["0"]
    new = json.loads((world.preprocessed / NAME / "splits_final.json").read_text())
    assert [split["val"] for split in new] == [sorted(split["val"]) for split in splits]
    assert [split["train"] for split in new] == [sorted([*split["train"], *names]) for split in splits]
    folder = world.raw / NAME
    assert len(list((folder / "imagesTr").iterdir())) == len(list((folder / "labelsTr").iterdir())) == 6 + SCANS
    for name in names:
        image, label = folder / "imagesTr" / f"{name}_0000.nii.gz", voxels(folder / "labelsTr" / f"{name}.nii.gz")
        assert image.resolve() == (scans / f"{name}_0000.nii.gz").resolve()
        assert label.shape == voxels(image).shape
        assert set(np.unique(label)) <= {0, 1, 2, 3}
    assert not list(folder.glob(".unfinished*"))
    assert not (folder / "lock").exists()

    lines = [line.strip() for line in done.stdout.splitlines()]
    extract, preprocess, train = lines[lines.index("Train the student, or add --train above:") + 1 :][:3]
    assert extract == "nnUNetv2_extract_fingerprint -d 104 --verify_dataset_integrity"
    world.run(*extract.split(), "-np", "1", nnUNet_n_proc_DA="1")
    world.run(*preprocess.split(), "-np", "1")
    variable, file = train.split()[0].split("=")
    options = yaml.safe_load(Path(file).read_text())
    assert options == {"teacher": {"folder": str(world.model("nnUNetTrainer")), "fold": 0}}
    assert train.split()[1:] == (
        ["nnUNetv2_train", "104", "3d_fullres", "0", "-tr", "nnUNetTrainerRegionKD", "-device", "cpu"]
    ), variable

    trained = world.train("nnUNetTrainerRegionKD", dataset="104", **options)
    assert f"{SCANS} training cases were not labelled by a person" in trained.stdout
    assert "agreement" not in trained.stdout
    record = json.loads((world.model("nnUNetTrainerRegionKD", dataset=NAME) / "fold_0" / "kd_record.json").read_text())
    assert record["teacher_labels"]["cases"] == names
    assert record["teacher_labels"]["validation_cases"] == 0
    assert [teacher["seen_validation_cases"] for teacher in record["teacher_labels"]["teachers"]] == [0]


@pytest.mark.slow
@pytest.mark.commands
def test_scans_alone_are_validated_by_agreement_and_called_so(world, scans):
    for file in sorted((DATA / "imagesTr").glob("*.nii.gz"))[13:15]:
        shutil.copyfile(file, scans / file.name)
    done = unlabelled(world, scans, "--teacher_folder", str(world.model("nnUNetTrainer")))
    assert "validation is agreement with the teacher, not accuracy" in done.stdout
    dataset = json_of(world)
    assert dataset["teacher_labels"]["validation"] == "agreement with the teacher"
    assert "ignore" not in dataset["labels"]
    assert dataset["numTraining"] == 5
    world.run("nnUNetv2_extract_fingerprint", "-d", "104", "-np", "1", nnUNet_n_proc_DA="1")
    world.run("nnUNetv2_preprocess", "-d", "104", "-c", "3d_fullres", "-np", "1")
    trained = world.train("nnUNetTrainerKDBaseline", dataset="104")
    assert "a teacher labelled 1 of the 1 validation cases" in trained.stdout
    assert "This validation Dice is agreement with the teacher that labelled" in trained.stdout
    record = json.loads(
        (world.model("nnUNetTrainerKDBaseline", dataset=NAME) / "fold_0" / "kd_record.json").read_text()
    )
    assert record["teacher_labels"]["validation_cases"] == 1
    assert len(record["teacher_labels"]["cases"]) == 4
    board = world.run("nnUNetv2_kd", "leaderboard", "-d", "104").stdout
    assert "Every Dice here is agreement with the teacher" in " ".join(board.split())


def test_all_problems_are_reported_before_a_teacher_runs(world, scans):
    labelled = sorted((world.raw / DATASET / "imagesTr").iterdir())[0]
    shutil.copyfile(labelled, scans / labelled.name)
    shutil.copyfile(labelled, scans / "renamed.nii.gz")
    (scans / "broken.nii.gz").write_bytes(b"no image")
    (world.raw / "Dataset104_Other").mkdir()
    done = unlabelled(world, scans, "-d", "4", "-f", "0", check=False)
    assert done.returncode == 1
    for words in (
        "is already a labelled case",
        "renamed is the image of the labelled case",
        "broken: broken.nii.gz cannot be read",
        "-o: the number 104 is that of Dataset104_Other already; take another",
    ):
        assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert not (world.raw / NAME).exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["-d", "4", "--confidence", "1.5"], "--confidence must be between 0 and 1, found 1.5"),
        (["-d", "4", "-f", "3"], "fold_3/checkpoint_final.pth does not exist; found -f 0 -chk checkpoint_best.pth"),
        (["-d", "4", "-f", "x"], "-f must be folds, such as 0 1 2 or all, found x"),
        (["-d", "5"], "There is no dataset 5"),
        ([], "Without -d there is no default teacher: name a model folder with --teacher_folder"),
        (["-d", "4", "-f", "0", "0"], "a teacher is named twice"),
    ],
)
def test_flags_that_do_not_fit_are_refused(world, scans, flags, words):
    done = unlabelled(world, scans, *flags, check=False)
    assert done.returncode == 1
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_teacher_of_other_labels_is_refused(world, scans):
    file = world.model("nnUNetTrainer") / "dataset.json"
    labels = {"labels": {"background": 0, "Anterior": 1, "Tail": 2}}
    file.write_text(json.dumps(json.loads(file.read_text()) | labels))
    done = unlabelled(world, scans, "-d", "4", "-f", "0", check=False)
    assert "no teacher knows 'Posterior'" in done.stderr
    assert "--labels Posterior=THEIR_LABEL" in done.stderr
    named = unlabelled(world, scans, "-d", "4", "-f", "0", "--labels", "Posterior=Tail")  # as the refusal says
    assert "labelled by nnUNetTrainer__nnUNetPlans__3d_fullres (fold 0)" in named.stdout
    student = yaml.safe_load((world.raw / NAME / "student.yaml").read_text())
    assert student["teacher"]["labels"] == {"Anterior": ["Anterior"], "Posterior": ["Tail"]}


@pytest.mark.commands
def test_a_student_of_some_of_a_models_structures(world, scans):
    """The sum of the parts that the model knows, without a labelled case."""
    for file in sorted((DATA / "imagesTr").glob("*.nii.gz"))[13:15]:
        shutil.copyfile(file, scans / file.name)
    flags = ("--teacher_folder", str(world.model("nnUNetTrainer")), "-f", "0")
    done = unlabelled(world, scans, *flags, "--labels", "whole=Anterior,Posterior")
    assert json_of(world)["labels"] == {"background": 0, "whole": 1}
    assert {int(voxels(file).max()) for file in (world.raw / NAME / "labelsTr").iterdir()} <= {0, 1}
    student = yaml.safe_load((world.raw / NAME / "student.yaml").read_text())
    assert student["teacher"]["labels"] == {"whole": ["Anterior", "Posterior"]}
    assert "whole, voxels" in done.stdout
    world.run("nnUNetv2_extract_fingerprint", "-d", "104", "-np", "1", nnUNet_n_proc_DA="1")
    world.run("nnUNetv2_preprocess", "-d", "104", "-c", "3d_fullres", "-np", "1")
    world.train("nnUNetTrainerRegionKD", dataset="104", **student)
    folder = world.model("nnUNetTrainerRegionKD", dataset=NAME) / "fold_0"
    [teacher] = json.loads((folder / "kd_record.json").read_text())["teachers"]
    assert teacher["folder"] == str(world.model("nnUNetTrainer"))


@pytest.mark.commands
def test_two_partial_teachers_label_and_are_stored_by_the_line_that_is_printed(world, scans):
    """The teachers are two copies of a model; the dataset knows one name of each."""
    folders = []
    for known, other in (("Anterior", "X"), ("Posterior", "Y")):
        folder = world.results / f"only_{known}" / world.model("nnUNetTrainer").name
        shutil.copytree(world.model("nnUNetTrainer"), folder)
        values = {known: 1, other: 2} if known == "Anterior" else {other: 1, known: 2}
        file = folder / "dataset.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"labels": {"background": 0, **values}}))
        checkpoint = torch.load(folder / "fold_0" / "checkpoint_final.pth", weights_only=False)
        torch.save(checkpoint | {"known": known}, folder / "fold_0" / "checkpoint_final.pth")  # no copy of the other
        folders += ["--teacher_folder", str(folder)]
    done = unlabelled(world, scans, "-d", "4", *folders, "-f", "0", "--votes", "0", "--scan_dice", "0")
    [line] = [line.strip() for line in done.stdout.splitlines() if line.strip().startswith("nnUNetv2_kd store")]
    world.run("nnUNetv2_extract_fingerprint", "-d", "104", "-np", "1", nnUNet_n_proc_DA="1")
    world.run("nnUNetv2_preprocess", "-d", "104", "-c", "3d_fullres", "-np", "1")
    stored = world.run(*shlex.split(line), "--disable_tta")
    assert "fold 0 teaches Anterior as Anterior, not Posterior" in stored.stderr


def test_a_label_that_is_left_to_nobody_is_refused(world, scans):
    done = unlabelled(world, scans, "-d", "4", "-f", "0", "--labels", "Posterior=", check=False)
    assert "gives Posterior no teacher, so it would be background in every scan" in done.stderr


def test_a_number_that_is_none_is_refused(world, scans):
    done = unlabelled(world, scans, "-d", "4", "-f", "0", out="a/b", check=False)
    assert "-o must be a dataset's number, such as 104" in done.stderr


def test_what_is_finished_stays_and_the_same_line_goes_on(world, scans, monkeypatch):
    from nnunetv2_kd.unlabelled import make

    plain = make._place
    fails = {"now": True}

    def full(request, first, scan, labels, properties, output, ending):
        if fails["now"] and len(output.scans) == 2:
            raise OSError(28, "No space left on device")
        assert scan.case not in output.scans
        plain(request, first, scan, labels, properties, output, ending)

    monkeypatch.setattr(make, "_place", full)
    flags = ("-d", "4", "-f", "0")
    done = unlabelled(world, scans, *flags, check=False)
    assert "The disk is full" in done.stderr
    assert "holds 2 finished scans, which are kept" in done.stderr
    assert "unlabelled -i" in done.stderr
    assert not (world.raw / NAME / "dataset.json").exists()
    other = unlabelled(world, scans, *flags, "--confidence", "0.9", check=False)
    assert "was started with other scans, teachers or settings" in other.stderr
    fails["now"] = False
    assert "2 of 3 scans are labelled already." in unlabelled(world, scans, *flags).stdout
    assert len(json_of(world)["teacher_labels"]["cases"]) == SCANS
    again = unlabelled(world, scans, *flags, check=False)
    assert "exists already and was kept as it is; take another number" in again.stderr


def test_a_scan_that_fails_is_named_after_the_others_are_done(world, scans, monkeypatch):
    from nnunetv2_kd.unlabelled.labellers import Labeller

    plain, broken = Labeller.probabilities, sorted(scans.iterdir())[0]

    def failing(self, files, label_map):
        if files[0] == broken:
            raise RuntimeError("no memory")
        return plain(self, files, label_map)

    monkeypatch.setattr(Labeller, "probabilities", failing)
    done = unlabelled(world, scans, "-d", "4", "-f", "0", check=False)
    assert "1 of 3 scans could not be labelled; the others are, and are kept:" in done.stderr
    assert f"{broken.name.removesuffix('_0000.nii.gz')}: RuntimeError: no memory" in done.stderr
    monkeypatch.undo()
    assert "2 of 3 scans are labelled already." in unlabelled(world, scans, "-d", "4", "-f", "0").stdout


def test_a_cascade_is_refused(world, scans):
    file = world.model("nnUNetTrainer") / "plans.json"
    plans = json.loads(file.read_text())
    plans["configurations"]["3d_fullres"]["previous_stage"] = "3d_lowres"
    file.write_text(json.dumps(plans))
    done = unlabelled(world, scans, "-d", "4", "-f", "0", check=False)
    assert "is a cascade: it needs the predictions of 3d_lowres" in done.stderr


def test_scans_on_which_teachers_disagree_are_left_out_and_listed(world, scans, monkeypatch):
    from nnunetv2_kd.unlabelled import make

    shutil.copytree(world.model("nnUNetTrainer") / "fold_0", world.model("nnUNetTrainer") / "fold_1")
    (world.model("nnUNetTrainer") / "fold_1" / "checkpoint_final.pth").unlink()
    shutil.copyfile(
        world.model("nnUNetTrainer") / "fold_0" / "checkpoint_best.pth",
        world.model("nnUNetTrainer") / "fold_1" / "checkpoint_final.pth",
    )
    names = sorted(file.name.removesuffix("_0000.nii.gz") for file in scans.iterdir())
    plain, seen = make.pseudo_labels, []

    def disagreeing(probabilities, members, *rest):
        seen.append(len(members))
        same = members[0].segmentation
        other = [np.ones_like(same), np.zeros_like(same)] if len(seen) == 1 else [same, same]
        members = [replace(members[0], segmentation=found) for found in other]
        return plain(members_as_probabilities(members), members, *rest)

    monkeypatch.setattr(make, "pseudo_labels", disagreeing)
    done = unlabelled(world, scans, "-d", "4")
    assert seen == [2] * SCANS
    message = json_of(world)["teacher_labels"]
    assert message["left_out"] == names[:1]
    assert message["cases"] == names[1:]
    assert f"{names[0]}: the teachers agree by a Dice of" in done.stdout
    assert not (world.raw / NAME / "imagesTr" / f"{names[0]}_0000.nii.gz").exists()
    assert "nnUNetv2_kd store -d 104 -c 3d_fullres --teacher_folder" in done.stdout
    assert yaml.safe_load((world.raw / NAME / "student.yaml").read_text()) == {"stored_teacher": "labellers"}


def members_as_probabilities(members):
    """The mean of segmentations as ``(3, *S)``."""
    members = [member.segmentation for member in members]
    return np.mean([np.stack([member == value for value in range(3)]) for member in members], axis=0, dtype=np.float32)
