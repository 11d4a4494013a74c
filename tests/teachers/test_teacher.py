import re
from pathlib import Path

import pytest
import torch
from torch import nn

from nnunetv2_kd.config import TeacherOptions
from nnunetv2_kd.errors import KDError
from nnunetv2_kd.networks.cpu_mode import set_mode
from nnunetv2_kd.nnunet.datasets import dataset_id
from nnunetv2_kd.nnunet.model_folder import CheckpointPath
from nnunetv2_kd.record import TeacherRecord
from nnunetv2_kd.teachers.find import StudentIdentity, find_teacher
from nnunetv2_kd.teachers.load import cases_of, load_strictly, trained_heads
from nnunetv2_kd.teachers.running import RunningTeacher
from tests.small_networks import network

STUDENT = StudentIdentity("Dataset999_Test", "nnUNetPlans", "3d_fullres", 0)


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    return tmp_path


def make_model(results, name="nnUNetTrainer__nnUNetPlans__3d_fullres", fold="0", checkpoint="checkpoint_final.pth"):
    folder = results / "Dataset999_Test" / name
    (folder / f"fold_{fold}").mkdir(parents=True)
    for file in ("plans.json", "dataset.json", f"fold_{fold}/{checkpoint}"):
        (folder / file).write_text("{}")
    return folder


def make_teacher(net):
    record = TeacherRecord("folder", "0", "checkpoint_final.pth", "0" * 64, "nnUNetTrainer", 1, 1, 0)
    return RunningTeacher(net, record, [True] * 2)


def test_default_is_the_users_own_model(results):
    folder = make_model(results)
    found = find_teacher(TeacherOptions(), STUDENT)
    assert found.checkpoint == folder / "fold_0" / "checkpoint_final.pth"


def test_options_name_another(results):
    folder = make_model(results, "nnUNetTrainerDA5__resenc__2d", "all", "checkpoint_best.pth")
    options = {"trainer": "nnUNetTrainerDA5", "plans": "resenc", "configuration": "2d", "fold": "all"}
    by_name = find_teacher(TeacherOptions(**options, checkpoint="checkpoint_best.pth"), STUDENT)
    by_folder = find_teacher(TeacherOptions(folder=folder, fold="all", checkpoint="checkpoint_best.pth"), STUDENT)
    assert by_name == by_folder


def test_no_teacher_lists_what_exists_and_the_line_to_type(results):
    make_model(results, "nnUNetTrainer__nnUNetPlans__3d_fullres", fold="3")
    with pytest.raises(KDError) as caught:
        find_teacher(TeacherOptions(), STUDENT)
    assert "nnUNetTrainer__nnUNetPlans__3d_fullres, fold 3, checkpoint_final.pth" in str(caught.value)
    assert re.search("Train it with: nnUNetv2_train 999 3d_fullres 0( -device cpu)?\n", str(caught.value))


def test_no_teacher_of_other_plans_and_trainer(results):
    with pytest.raises(KDError, match="999 3d_fullres 0 -p big -tr nnUNetTrainerDA5( -device cpu)?\n.*\nNo model of"):
        find_teacher(TeacherOptions(trainer="nnUNetTrainerDA5", plans="big"), STUDENT)


def test_dataset_id():
    assert dataset_id("Dataset004_Hippocampus") == "4"


def test_a_teacher_never_trains():
    net = network().train()
    teacher = make_teacher(net)
    net.train()
    data = torch.randn(1, 1, 8, 8, 8)
    output = teacher.run(data)
    assert not net.training
    assert output.features == {}
    assert not any(z.requires_grad or z.is_inference() for z in output.logits)
    assert not any(p.requires_grad for p in net.parameters())


def test_a_teachers_answer_can_be_used_in_a_backward_pass():
    teacher = make_teacher(network())
    teacher.tap({"decoder.0": "decoder.0"})
    output = teacher.run(torch.randn(1, 1, 8, 8, 8))
    logits, features = output.logits, output.features
    student = torch.ones_like(logits[0], requires_grad=True)
    ((student * logits[0]).sum() + (student[:, :1] * features["decoder.0"]).sum()).backward()
    assert student.grad is not None


def test_features_come_under_the_students_names():
    """The student has one stage with stride 4 where the teacher has two stages with stride 2."""
    teacher = make_teacher(network(features=(2, 4, 8)))
    teacher.tap({"encoder.1": "encoder.2"})
    output = teacher.run(torch.randn(1, 1, 8, 8, 8))
    assert output.features["encoder.1"].shape == (1, 8, 2, 2, 2)


@pytest.mark.parametrize("way", ["float32", "float32_channels_last"])
def test_the_decoder_does_not_run_where_nothing_of_it_is_wanted(way):
    net = network()
    set_mode(net, way)
    ran = []
    net.decoder.register_forward_hook(lambda *_: ran.append(True))
    teacher, data = make_teacher(net), torch.randn(1, 1, 8, 8, 8)
    teacher.tap({"encoder.0": "encoder.0", "encoder.1": "encoder.1"})
    without = teacher.run(data, logits=False)
    assert not ran
    assert without.logits == []
    whole = make_teacher(net).run(data)
    assert len(whole.logits) == 2
    assert len(ran) == 1
    whole = teacher.run(data)
    assert len(ran) == 2
    assert len(whole.logits) == 2
    for stage, features in whole.features.items():
        assert torch.equal(without.features[stage], features)
    teacher.tap({"encoder.0": "encoder.0", "decoder.0": "decoder.0"})
    assert set(teacher.run(data, logits=False).features) == {"encoder.0", "decoder.0"}


def test_a_teacher_is_no_module():
    """So that assigning it to a trainer or a module registers nothing."""
    holder = nn.Module()
    holder.teacher = make_teacher(network())
    assert list(holder.parameters()) == []
    assert holder.state_dict() == {}


def test_heads_that_never_had_a_gradient_do_not_teach():
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    output = net(torch.randn(1, 1, 8, 8, 8))
    assert trained_heads(net, optimizer.state_dict()) == [True, False]  # its bias is 0, as it was initialised
    output[0].mean().backward()
    optimizer.step()
    assert trained_heads(net, optimizer.state_dict()) == [True, False]
    sum(head.mean() for head in net(torch.randn(1, 1, 8, 8, 8))).backward()
    optimizer.step()
    assert trained_heads(net, optimizer.state_dict()) == [True, True]
    assert trained_heads(net, None) == [True, True]
    assert trained_heads(nn.Linear(1, 1), None) == [True]


def test_weights_are_loaded_strictly(tmp_path):
    path = CheckpointPath(tmp_path, 0, "checkpoint_final.pth")
    weights = network().state_dict()
    load_strictly(network(), {f"module.{key}": value for key, value in weights.items()}, path)
    first, second, *_ = weights
    weights["extra"] = weights.pop(first)
    weights[second] = torch.zeros(3)
    with pytest.raises(KDError) as caught:
        load_strictly(network(), weights, path)
    message = str(caught.value)
    assert f"{first}: missing" in message
    assert "extra: in the checkpoint only" in message
    assert f"{second}: shape (3,) in the checkpoint, (8,) in the network" in message


def test_weights_of_another_width(tmp_path):
    with pytest.raises(KDError, match="and [0-9]+ more"):
        load_strictly(network(), network(features=(4, 8, 16)).state_dict(), CheckpointPath(tmp_path, 0, "c.pth"))


def test_whoever_changes_the_teacher_is_stopped():
    teacher = make_teacher(network())
    teacher.run(torch.randn(1, 1, 8, 8, 8))
    assert teacher.end_epoch(0) == []
    with torch.no_grad():
        next(teacher.network.parameters()).add_(1)
    with pytest.raises(KDError, match="teacher's weights changed during epoch 1"):
        teacher.end_epoch(1)


@pytest.mark.parametrize("kind", [torch.int64, torch.complex64, torch.bool])
def test_weights_of_another_kind_are_not_cast(kind):
    weights = dict(network().state_dict())
    name = next(iter(weights))
    weights[name] = weights[name].to(kind)
    with pytest.raises(KDError, match=rf"{name}: another kind of number in the checkpoint \({kind}\)"):
        load_strictly(network(), weights, CheckpointPath(Path("m"), 0, "c.pth"))


@pytest.mark.parametrize("kind", [torch.float16, torch.float64])
def test_weights_of_another_precision_are_read(kind):
    weights = {name: value.to(kind) for name, value in network().state_dict().items()}
    load_strictly(network(), weights, CheckpointPath(Path("m"), 0, "c.pth"))


def test_weights_that_are_no_numbers_teach_nothing():
    weights = dict(network().state_dict())
    name = next(iter(weights))
    weights[name] = weights[name] * float("nan")
    with pytest.raises(KDError, match=rf"m/fold_0/c\.pth are not finite numbers, such as {name}"):
        load_strictly(network(), weights, CheckpointPath(Path("m"), 0, "c.pth"))


@pytest.mark.parametrize("kd", [{"teachers": None}, {"teachers": 3}, {"teachers": [3]}])
def test_a_record_of_something_else_is_refused(tmp_path, kd):
    path, plans = CheckpointPath(tmp_path, 0, "c.pth"), {"dataset_name": "Dataset999_Test"}
    with pytest.raises(KDError, match=r"fold_0/c\.pth cannot be used, because it is not as nnU-Net writes it"):
        cases_of(path, plans, {"file_ending": ".nii.gz"}, {"kd": kd})
