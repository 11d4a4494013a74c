"""The methods of benchmarks/accuracy/other_methods.py, against NumPy in float64."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import log_softmax

FILE = Path(__file__).parents[1] / "benchmarks" / "accuracy" / "other_methods.py"


@pytest.fixture(scope="module")
def methods():
    spec = importlib.util.spec_from_file_location("other_methods", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def logits(seed, shape=(2, 3, 4, 5)):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 3


def divergence(p, q):
    return float((p * np.log(p / q)).sum())


def decoupled(student, teacher, target, alpha, beta, temperature):
    values = []
    for b, *place in np.ndindex(student.shape[0], *student.shape[2:]):
        c = int(target[(b, 0, *place)])
        both = [np.exp(log_softmax(z[(b, slice(None), *place)] / temperature)) for z in (student, teacher)]
        others = [np.delete(p, c) / np.delete(p, c).sum() for p in both]
        binary = [np.array([p[c], 1 - p[c]]) for p in both]
        values.append(alpha * divergence(binary[1], binary[0]) + beta * divergence(others[1], others[0]))
    return temperature**2 * np.mean(values)


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (1, 4, 2, 3, 2)])
def test_decoupled_kd_against_numpy(methods, shape):
    student, teacher = logits(0, shape), logits(1, shape)
    target = torch.randint(shape[1], (shape[0], 1, *shape[2:]), generator=torch.Generator().manual_seed(2)).float()
    expected = decoupled(student.double().numpy(), teacher.double().numpy(), target.numpy(), 0.7, 2.0, 4.0)
    assert float(methods.decoupled_kd(student, teacher, target, 0.7, 2.0, 4.0)) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", ["decoupled_kd", "boundary_kl"])
def test_identical_networks_are_zero_and_only_the_student_learns(methods, name):
    term, target = getattr(methods, name), torch.zeros(2, 1, 4, 5)
    target[..., 2:] = 1
    assert float(term(logits(0), logits(0), target)) == pytest.approx(0, abs=1e-5)
    student, teacher = logits(0).requires_grad_(), logits(1).requires_grad_()
    term(student, teacher, target).backward()
    assert student.grad.abs().sum() > 0
    assert teacher.grad is None


def test_decoupled_kd_of_two_classes_is_the_plain_kl(methods):
    """With two classes the other class is alone, so that only the target part is left, which is the plain KL."""
    from nnunetv2_kd.methods.voxel_kl import voxel_kl

    student, teacher = logits(0, (2, 2, 4, 5)), logits(1, (2, 2, 4, 5))
    mine = methods.decoupled_kd(student, teacher, torch.ones(2, 1, 4, 5), beta=9.0, temperature=2.0)
    assert float(mine) == pytest.approx(float(voxel_kl(student, teacher, temperature=2.0)), rel=1e-4)


def test_standardised_logits(methods):
    z = logits(3)
    found = methods.standardised(z)
    assert torch.allclose(found.mean(dim=1), torch.zeros(2, 4, 5), atol=1e-5)
    assert torch.allclose(found, methods.standardised(5 * z + 2), atol=1e-4)  # neither scale nor offset count
    expected = (z.double().numpy() - z.double().numpy().mean(1, keepdims=True)) / z.double().numpy().std(
        1, keepdims=True
    )
    assert np.allclose(found.numpy(), expected, atol=1e-4)
    assert torch.isfinite(methods.standardised(torch.zeros(1, 3, 2, 2))).all()


def near_another_class(target, width):
    """Whether a voxel of a class-index array (*S) is at most `width` voxels from another class."""
    near = np.zeros(target.shape, bool)
    for place in np.ndindex(*target.shape):
        window = target[tuple(slice(max(0, i - width), i + width + 1) for i in place)]
        near[place] = (window != target[place]).any()
    return near


def balanced(student, teacher, target, width):
    log_s, log_t = (log_softmax(z, axis=1) for z in (student, teacher))
    kl = (np.exp(log_t) * (log_t - log_s)).sum(axis=1)
    near = np.stack([near_another_class(image[0], width) for image in target])
    regions = [(target[:, 0] == c) & (near == is_near) for c in range(student.shape[1]) for is_near in (True, False)]
    return np.mean([kl[region].mean() for region in regions if region.any()])


@pytest.mark.parametrize(("shape", "width"), [((2, 3, 9, 11), 2), ((1, 3, 5, 6, 7), 1)])
def test_boundary_kl_against_numpy(methods, shape, width):
    student, teacher = logits(0, shape), logits(1, shape)
    target = torch.zeros(shape[0], 1, *shape[2:])
    target[..., 3:, 2:] = 1  # class 2 is absent
    expected = balanced(student.double().numpy(), teacher.double().numpy(), target.numpy(), width)
    assert float(methods.boundary_kl(student, teacher, target, width)) == pytest.approx(expected, rel=1e-4)


def test_a_small_error_weighs_more_where_a_shell_is_small(methods):
    """The two shells are a fifth of the voxels and half of the regions."""
    target = torch.zeros(1, 1, 20, 20)
    target[..., 10:] = 1
    teacher = torch.zeros(1, 2, 20, 20)
    at_boundary, inside = teacher.clone(), teacher.clone()
    at_boundary[:, 0, 5, 9] = 3
    inside[:, 0, 5, 2] = 3
    found = [float(methods.boundary_kl(student, teacher, target)) for student in (at_boundary, inside)]
    assert found[0] == pytest.approx(4 * found[1], rel=1e-4)  # 160 voxels inside of a class, 40 in its shell
