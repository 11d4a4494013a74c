import pytest
import torch

from nnunetv2_kd.config import StudentOptions
from nnunetv2_kd.errors import KDError
from nnunetv2_kd.formatting import format_count
from nnunetv2_kd.networks.build import build_on_meta
from nnunetv2_kd.networks.cost import network_cost
from nnunetv2_kd.students.shrink import made_from, shrink_plans
from nnunetv2_kd.students.size import student_plans, width_for
from tests.small_networks import DATASET_JSON, network, plans


def features(p, configuration="3d_fullres"):
    return p["configurations"][configuration]["architecture"]["arch_kwargs"]["features_per_stage"]


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("configuration", ["2d", "3d_fullres", "3d_fullres_bs4"])
def test_shrunken_plans_build_a_network_that_runs(residual, configuration):
    student = shrink_plans(plans(residual=residual), {configuration: 0.5}, convs_per_stage=1)
    assert features(student, configuration) == [4, 8, 16]
    net = build_on_meta(student, configuration, DATASET_JSON)
    size = (16, 16) if configuration == "2d" else (16, 16, 16)
    assert net(torch.empty(1, 1, *size, device="meta")).shape == (1, 3, *size)


def test_nothing_but_the_architecture_changes():
    teacher = plans()
    student = shrink_plans(teacher, {"3d_fullres": 0.5}, name="nnUNetPlansStudent")
    assert teacher == plans()
    assert made_from(student) == "nnUNetPlans"
    assert made_from(teacher) is None
    for configuration in ("2d", "3d_fullres_bs4"):
        assert student["configurations"][configuration] == teacher["configurations"][configuration]
    for key, value in teacher["configurations"]["3d_fullres"].items():
        if key != "architecture":
            assert student["configurations"]["3d_fullres"][key] == value


def test_convolutions_are_capped_and_never_added():
    student = shrink_plans(plans(), {"3d_fullres": 1.0}, convs_per_stage=1)
    kwargs = student["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    assert kwargs["n_conv_per_stage"] == [1, 1, 1]
    assert kwargs["n_conv_per_stage_decoder"] == [1, 1]
    same = shrink_plans(plans(), {"3d_fullres": 1.0}, convs_per_stage=5)
    assert same["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["n_conv_per_stage"] == [2, 2, 2]


def test_width_that_leaves_no_channels():
    with pytest.raises(KDError, match=r"Width 0.05 leaves a stage without channels.*\[8, 16, 32\].*0.0625"):
        shrink_plans(plans(), {"3d_fullres": 0.05})


def test_unknown_configuration():
    with pytest.raises(KDError, match=r"no configuration '3d_lowres', only 2d, 3d_fullres"):
        shrink_plans(plans(), {"3d_lowres": 0.5})


def test_architecture_without_widths():
    teacher = plans()
    del teacher["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["features_per_stage"]
    with pytest.raises(KDError, match="Cannot shrink.*no features_per_stage"):
        shrink_plans(teacher, {"3d_fullres": 0.5})


def test_cost_is_that_of_the_real_network():
    cost = network_cost(plans(), "3d_fullres", DATASET_JSON)
    assert cost.params == sum(p.numel() for p in network().parameters())
    first_convolution = 2 * 16**3 * 27 * 1 * 8
    assert cost.flops > first_convolution
    assert network_cost(shrink_plans(plans(), {"3d_fullres": 0.5}), "3d_fullres", DATASET_JSON).flops < cost.flops / 3


def test_flops_of_one_convolution_closed_form():
    """Two stages with one convolution each: 2 x voxels x kernel x channels in x channels out, and so on."""
    tiny = plans(features=(2, 2), blocks=1)
    voxels, coarse = 16**3, 8**3
    encoder = voxels * 27 * 1 * 2 + coarse * 27 * 2 * 2
    decoder = coarse * 8 * 2 * 2 + voxels * 27 * 4 * 2 + voxels * 2 * 3
    assert network_cost(tiny, "3d_fullres", DATASET_JSON).flops == 2 * (encoder + decoder)


@pytest.mark.parametrize(("budget", "quantity"), [("10k", "params"), ("0.3", "params"), ("0.2", "flops")])
def test_a_budget_is_kept_to_and_used(budget, quantity):
    teacher = plans()
    whole = getattr(network_cost(teacher, "3d_fullres", DATASET_JSON), quantity)
    allowed = 10_000 if budget == "10k" else float(budget) * whole
    width = width_for(teacher, "3d_fullres", DATASET_JSON, StudentOptions(**{quantity: budget}))

    def size(w):
        return getattr(network_cost(shrink_plans(teacher, {"3d_fullres": w}), "3d_fullres", DATASET_JSON), quantity)

    assert size(width) <= allowed < size(min(width + 0.07, 1.0))  # 0.07 is more than one channel of eight half steps


def test_a_budget_that_no_student_keeps_to():
    with pytest.raises(KDError, match=r"No student of 3d_fullres has params <= 10: the narrowest network has"):
        width_for(plans(), "3d_fullres", DATASET_JSON, StudentOptions(params="10"))


def test_a_budget_above_the_teacher_is_refused():
    with pytest.raises(KDError, match="so the student would be as large or nearly so. Ask for less: between"):
        width_for(plans(), "3d_fullres", DATASET_JSON, StudentOptions(params="1G"))


def test_student_plans_are_made_once():
    made, made_here = student_plans(plans(), "3d_fullres", DATASET_JSON, StudentOptions())
    assert made_here
    assert features(made) == [4, 8, 16]
    again, made_here = student_plans(made, "3d_fullres", DATASET_JSON, StudentOptions())
    assert not made_here
    assert again == made


def test_size_for_plans_that_are_a_students_already():
    made, _ = student_plans(plans(), "3d_fullres", DATASET_JSON, StudentOptions())
    with pytest.raises(KDError, match="ask for student.width, but the plans nnUNetPlans are already a student's"):
        student_plans(made, "3d_fullres", DATASET_JSON, StudentOptions(width=0.3))


@pytest.mark.parametrize(("count", "words"), [(999, "999"), (1500, "1.50 k"), (1402835, "1.40 M"), (3e9, "3.00 G")])
def test_in_words(count, words):
    assert format_count(count) == words
