"""``student: {start: teacher}``, and ``-pretrained_weights`` with a teacher's checkpoint."""

import json

import pytest
import torch
import yaml

from nnunetv2_kd.config import StudentOptions
from nnunetv2_kd.errors import KDError
from nnunetv2_kd.networks.build import build_network
from nnunetv2_kd.students.part_of_teacher import start_as_part
from nnunetv2_kd.trainers.pretrained import check_pretrained

STANDS_STILL = {"name": "sgd", "lr": 1e-12, "weight_decay": 0.0}


def expected(world, student_checkpoint):
    """The student's network as a part of the teacher's."""
    folder = world.model("nnUNetTrainer")
    plans, dataset_json = (json.loads((folder / name).read_text()) for name in ("plans.json", "dataset.json"))
    teacher = build_network(plans, "3d_fullres", dataset_json, "nnUNetTrainer", deep_supervision=True)
    checkpoint = torch.load(folder / "fold_0" / "checkpoint_final.pth", weights_only=False)
    teacher.load_state_dict(checkpoint["network_weights"])
    of_student = student_checkpoint["init_args"]["plans"]
    student = build_network(of_student, "3d_fullres", dataset_json, "nnUNetTrainer", deep_supervision=True)
    start_as_part(student, teacher)
    return student.state_dict()


@pytest.mark.commands
@pytest.mark.parametrize("trainer", ["nnUNetTrainerRegionKD", "nnUNetTrainerKDBaseline"])
def test_a_student_begins_as_a_part_of_its_teacher_and_says_so(world, trainer):
    options = {"student": {"width": 0.5, "start": "teacher"}, "optimizer": STANDS_STILL, "epochs": 1}
    done = world.train(trainer, validate=False, **options)
    folder = world.model(trainer) / "fold_0"
    assert f"The student starts as a part of {world.model('nnUNetTrainer')}, fold 0" in done.stdout
    checkpoint = torch.load(folder / "checkpoint_final.pth", weights_only=False)
    for name, tensor in expected(world, checkpoint).items():
        torch.testing.assert_close(checkpoint["network_weights"][name], tensor, rtol=1e-5, atol=1e-6)
    record = json.loads((folder / "kd_record.json").read_text())
    assert record["start"]["fold"] == "0"
    assert record["training"]["initial_weights"].startswith(f"a part of {world.model('nnUNetTrainer')}")
    assert bool(record["teachers"]) == (trainer == "nnUNetTrainerRegionKD")


@pytest.mark.commands
def test_a_teachers_weights_as_pretrained_ones_are_refused_with_what_to_do(world):
    file = world.model("nnUNetTrainer") / "fold_0" / "checkpoint_final.pth"
    done = world.train("nnUNetTrainerRegionKD", "-pretrained_weights", str(file), check=False)
    assert done.returncode == 1
    assert "has a network of another size than this student" in done.stderr
    assert "is 4x1x3x3x3 in the file and 2x1x3x3x3 in the student" in done.stderr
    message = done.stderr.split("names: ")[1].splitlines()[0]
    options = [yaml.safe_load(part) for part in message.split(" and ")]
    assert options[0] == {"student": {"start": "teacher"}}
    assert options[1]["teacher"] == {
        "folder": str(world.model("nnUNetTrainer")),
        "fold": 0,
        "checkpoint": "checkpoint_final.pth",
    }
    assert "tensor(" not in done.stderr + done.stdout


def test_a_teacher_in_training_has_no_part_to_begin_with(world):
    done = world.train("nnUNetTrainerJointKD", check=False, student={"start": "teacher"})
    assert "so the student cannot start as a part of it" in done.stderr


def test_two_beginnings_are_refused(tmp_path):
    with pytest.raises(KDError, match="Leave out one"):
        check_pretrained(tmp_path / "a.pth", torch.nn.Linear(1, 1), StudentOptions(start="teacher"))


def test_pretrained_weights_that_fit_are_let_through(tmp_path):
    network = torch.nn.Linear(2, 3)
    file = tmp_path / "fold_0" / "checkpoint_final.pth"
    file.parent.mkdir()
    rest = {"init_args": {"configuration": "3d_fullres"}, "trainer_name": "nnUNetTrainer", "current_epoch": 1}
    torch.save({"network_weights": network.state_dict(), **rest}, file)
    check_pretrained(file, network, StudentOptions())
    with pytest.raises(KDError, match="weight is 3x2 in the file and 3x1 in the student") as refusal:
        check_pretrained(file, torch.nn.Linear(1, 3), StudentOptions())
    assert "names: student: {start: teacher}\n" in str(refusal.value)
