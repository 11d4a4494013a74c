"""A contract that every distillation method must keep, ours and yours, as pytest parameters::

    from nnunetv2_kd.testing import method_contract

    @method_contract(MyMethod())
    def test_contract(check):
        check()

Every check goes through the object that training uses, `nnunetv2_kd.distillation.Distillation`, with small U-Nets as
nnU-Net builds them: in 2D and 3D, with exclusive labels and overlapping regions, with and without the ignore label.
"""

import copy
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from pydantic import ValidationError
from torch import Tensor, nn

from nnunetv2_kd.distillation import Distillation, DistillationLoss
from nnunetv2_kd.methods import Method
from nnunetv2_kd.regions import Labels
from nnunetv2_kd.teachers.running import RunningTeacher
from nnunetv2_kd.teachers.teacher import TeacherOutput

CLASSES = 3
IGNORED = slice(0, 8)  # along the first axis, whole cells of the coarsest grid
SIDE = 16
KINDS = {
    "labels": Labels(CLASSES, False, None),
    "labels, ignored": Labels(CLASSES, False, CLASSES),
    "regions": Labels(CLASSES, True, None),
    "regions, ignored": Labels(CLASSES, True, CLASSES),
}


@dataclass(frozen=True)
class Situation:
    """A setting in which a method is checked: dimensions, how to read the targets, and the number
    of supervised heads."""

    dims: int
    kind: str
    heads: int = 2

    @property
    def labels(self) -> Labels:
        return KINDS[self.kind]

    def __str__(self) -> str:
        return f"{self.dims}D, {self.kind}, {self.heads} head{'s' if self.heads > 1 else ''}"


SITUATIONS = (
    *(Situation(2, kind) for kind in KINDS),
    Situation(2, "labels", heads=1),
    Situation(3, "labels"),
    Situation(3, "regions, ignored"),
)


class NoSegmentation(nn.Module):
    """A segmentation loss that is 0, with nnU-Net's weights of the heads."""

    def __init__(self, weight_factors: Sequence[float]) -> None:
        super().__init__()
        self.weight_factors = tuple(weight_factors)

    def forward(self, output: list[Tensor], target: list[Tensor]) -> Tensor:
        return 0 * output[0].float().sum()


def small_unet(dims: int, width: int, seed: int = 0) -> nn.Module:
    """Three stages, as nnU-Net builds them, with a head at each of the two finer ones."""
    torch.manual_seed(seed)
    return PlainConvUNet(
        1,
        3,
        [width, 2 * width, 4 * width],
        nn.Conv2d if dims == 2 else nn.Conv3d,
        3,
        [1, 2, 2],
        1,
        CLASSES,
        1,
        conv_bias=True,
        norm_op=nn.InstanceNorm2d if dims == 2 else nn.InstanceNorm3d,
        norm_op_kwargs={"affine": True},
        nonlin=nn.LeakyReLU,
        deep_supervision=True,
    )


class World:
    """A student, a teacher, a batch, and a method.

    Args:
        method: with its options.
        situation: the setting to check it in.
        identical: whether both networks are the same.
        batch_size: samples.
        balance_gradients: see `Distillation`.
    """

    def __init__(
        self,
        method: Method,
        situation: Situation,
        identical: bool = False,
        batch_size: int = 3,
        balance_gradients: bool = False,
    ) -> None:
        self.method, self.situation = method, situation
        network_t = small_unet(situation.dims, 4 if identical else 6, seed=1)
        self.student = copy.deepcopy(network_t) if identical else small_unet(situation.dims, 4)
        self.teacher = RunningTeacher(network_t)
        weights = (2 / 3, 1 / 3) if situation.heads == 2 else (1.0, 0.0)
        torch.manual_seed(2)
        self.distillation = Distillation(
            self.student,
            self.teacher,
            {method.name: method},
            situation.labels,
            NoSegmentation(weights),
            balance_gradients,
        )
        generator = torch.Generator().manual_seed(3)
        size = (SIDE,) * situation.dims
        self.data = torch.randn((batch_size, 1, *size), generator=generator)
        self.targets = targets_of(situation, torch.randint(0, CLASSES, (batch_size, 1, *size), generator=generator))

    @property
    def loss(self) -> DistillationLoss:
        return self.distillation.loss

    def outputs(self) -> tuple[list[Tensor], TeacherOutput]:
        """The student's and the teacher's outputs; the loss uses the features of the latest call."""
        output_t = self.teacher({"data": self.data})
        with self.loss.distilling(output_t):
            heads = self.student(self.data)
            self.features_s = dict(self.loss.taps.take())
        return heads, output_t

    def term(self, heads: list[Tensor], output_t: TeacherOutput, features_s: dict[str, Tensor] | None = None) -> Tensor:
        """The total loss, which here is only the weighted term.

        Args:
            heads: the student's logits.
            output_t: the teacher's.
            features_s: the student's; default: those from the last `outputs`.
        """
        with self.loss.distilling(output_t):
            self.loss.taps.put(self.features_s if features_s is None else features_s)
            return self.loss(heads, self.targets)

    def value(self) -> Tensor:
        return self.term(*self.outputs())


def targets_of(situation: Situation, classes: Tensor) -> list[Tensor]:
    """nnU-Net's targets for both heads: class indices, or one channel per region and one that marks ignored voxels."""
    labels = situation.labels
    ignored = torch.zeros_like(classes, dtype=torch.bool)
    if labels.ignore_label is not None:
        ignored[:, :, IGNORED] = True
    if labels.has_regions:
        regions = torch.cat([classes >= k for k in range(CLASSES)], dim=1)
        finest = torch.cat((regions, ignored), dim=1) if labels.ignore_label is not None else regions
        finest = finest.float()
    else:
        finest = classes.masked_fill(ignored, CLASSES).float()
    every_second = (slice(None), slice(None), *(slice(None, None, 2),) * situation.dims)
    coarse = finest[every_second]
    return [finest, coarse]


# ---- the checks

Check = Callable[[Method, Situation], None]
Condition = Callable[[Method, Situation], bool]
CONDITIONS: dict[str, Condition] = {}


def _where(condition: Condition) -> Callable[[Check], Check]:
    """Make a check only in situations that fulfil a condition."""

    def remember(check: Check) -> Check:
        CONDITIONS[check.__name__] = condition
        return check

    return remember


@_where(lambda method, _: method.value_when_identical is not None)
def check_identical(method: Method, situation: Situation) -> None:
    """Identical networks give the value that the method declares."""
    value = float(World(method, situation, identical=True).value().detach())
    assert value == pytest.approx(method.value_when_identical, abs=1e-5)


def check_finite(method: Method, situation: Situation) -> None:
    """The term is a finite scalar, not negative, with a finite gradient."""
    world = World(method, situation)
    value = world.value()
    value.backward()
    assert value.ndim == 0
    assert torch.isfinite(value)
    assert float(value.detach()) >= -1e-6
    assert all(torch.isfinite(p.grad).all() for p in world.student.parameters() if p.grad is not None)


def check_gradient(method: Method, situation: Situation) -> None:
    """The gradient reaches the student, but not the teacher."""
    world = World(method, situation)
    heads, output_t = world.outputs()
    given = [*output_t.logits, *output_t.features.values()]
    for tensor in given:
        tensor.requires_grad_()
    world.term(heads, output_t).backward()
    assert sum(float(p.grad.abs().sum()) for p in world.student.parameters() if p.grad is not None) > 0
    assert all(tensor.grad is None or not tensor.grad.any() for tensor in given)
    assert all(p.grad is None for p in world.teacher.network.parameters())


def check_weight(method: Method, situation: Situation) -> None:
    """The term is multiplied by its weight and by the schedule's factor."""
    value = World(method, situation).value()
    doubled = method.model_copy(update={"weight": 2 * method.weight})
    assert float(World(doubled, situation).value().detach()) == pytest.approx(2 * float(value.detach()), rel=1e-5)
    world = World(method, situation)
    heads, output_t = world.outputs()
    with world.loss.distilling(output_t, factor=0.5):
        world.loss.taps.put(world.features_s)
        assert float(world.loss(heads, world.targets).detach()) == pytest.approx(0.5 * float(value.detach()), rel=1e-5)


@_where(lambda method, situation: method.needs.logits and situation.heads > 1)
def check_heads(method: Method, situation: Situation) -> None:
    """Every supervised head counts with its weight."""
    values = []
    for weights in ((1.0, 0.0), (0.0, 1.0), (0.25, 2.0)):
        world = World(method, situation)
        segmentation: Any = world.loss.segmentation  # nnU-Net's wrapper for deep supervision
        segmentation.weight_factors = weights
        values.append(float(world.value().detach()))
    assert values[2] == pytest.approx(0.25 * values[0] + 2.0 * values[1], rel=1e-4)
    assert values[0] != pytest.approx(values[1], rel=1e-6)


@_where(lambda _, situation: situation == SITUATIONS[0])
def check_options(method: Method, situation: Situation) -> None:
    """Every option changes the value or the gradient."""
    before = _value_and_gradient(method, situation)
    for name in type(method).model_fields:
        if name == "weight":
            continue
        other = next(_alternatives(method, name), None)
        assert other is not None, f"no other valid value of {name} was found to compare with {getattr(method, name)!r}"
        value, gradient = _value_and_gradient(other, situation)
        same = value == pytest.approx(before[0], rel=1e-6) and torch.allclose(gradient, before[1], rtol=1e-5, atol=1e-8)
        assert not same, f"{name}={getattr(other, name)!r} does what {getattr(method, name)!r} does"


@_where(lambda method, situation: situation.labels.ignore_label is not None and not method.counts_ignored_voxels)
def check_ignored(method: Method, situation: Situation) -> None:
    """The networks' outputs at ignored voxels change nothing, unless the method declares otherwise."""
    world = World(method, situation)
    heads, output_t = world.outputs()
    expected = float(world.term(heads, output_t).detach())
    assert expected > 0
    other = TeacherOutput(
        [_change(z, -3.0) for z in output_t.logits], {k: _change(f, 2.0) for k, f in output_t.features.items()}
    )
    features_s = {stage: _change(f, -5.0) for stage, f in world.features_s.items()}
    changed = float(world.term([_change(z, 7.0) for z in heads], other, features_s).detach())
    assert changed == pytest.approx(expected, rel=1e-3)


@_where(lambda method, situation: method.needs.logits and situation.labels.has_regions)
def check_sigmoid(method: Method, situation: Situation) -> None:
    """Overlapping regions have sigmoid heads: adding a constant to all of a voxel's logits, which a softmax ignores,
    changes the value."""
    world = World(method, situation)
    heads, output_t = world.outputs()
    generator = torch.Generator().manual_seed(4)
    shifted = [z.detach() + torch.randn((len(z), 1, *z.shape[2:]), generator=generator) for z in heads]
    value, other = (float(world.term(z, output_t).detach()) for z in (heads, shifted))
    assert value != pytest.approx(other, rel=1e-6)


def check_absent_classes(method: Method, situation: Situation) -> None:
    """Patches with only background, or without any labelled voxel, give finite values and gradients."""
    shape = (3, 1, *(SIDE,) * situation.dims)
    for target in (torch.zeros(shape, dtype=torch.long), torch.full(shape, CLASSES - 1)):
        world = World(method, situation)
        world.targets = targets_of(situation, target)
        _assert_trains_finitely(world)
    if situation.labels.ignore_label is not None:
        world = World(method, situation)
        for target in world.targets:
            if situation.labels.has_regions:
                target[:] = 0
                target[:, -1] = 1
            else:
                target[:] = CLASSES
        value = _assert_trains_finitely(world)
        assert method.counts_ignored_voxels or value == pytest.approx(0, abs=1e-6), "an all-ignored patch must give 0"


def check_batch_order(method: Method, situation: Situation) -> None:
    """The order of the samples does not matter."""
    world = World(method, situation)
    value = float(world.value().detach())
    world.data, world.targets = world.data.flip(0), [y.flip(0) for y in world.targets]
    assert float(world.value().detach()) == pytest.approx(value, rel=1e-4)


def check_bfloat16(method: Method, situation: Situation) -> None:
    """Logits and features in bfloat16, as under autocast, give nearly the same value, in float32."""
    world = World(method, situation)
    heads, output_t = world.outputs()
    value = float(world.term(heads, output_t).detach())
    half = TeacherOutput(
        [z.bfloat16() for z in output_t.logits], {k: f.bfloat16() for k, f in output_t.features.items()}
    )
    features_s = {stage: f.bfloat16() for stage, f in world.features_s.items()}
    found = world.term([z.bfloat16() for z in heads], half, features_s)
    assert found.dtype == torch.float32
    assert float(found.detach()) == pytest.approx(value, rel=0.1, abs=1e-4)


@_where(lambda _, situation: situation == SITUATIONS[0])
def check_compiled(method: Method, situation: Situation) -> None:
    """The compiled term gives the same value."""
    world = World(method, situation)
    value = float(world.value().detach())
    torch._dynamo.reset()
    world.loss._compute = torch.compile(world.loss._compute, backend="eager")
    assert float(world.value().detach()) == pytest.approx(value, rel=1e-4)


def check_learning(method: Method, situation: Situation) -> None:
    """A student trained only on this term gets closer to its teacher."""
    world = World(method, situation)
    parameters = [*world.student.parameters(), *world.distillation.trained_parts.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=3e-3)
    values = []
    for _ in range(12):
        optimizer.zero_grad()
        value = world.value()
        value.backward()
        optimizer.step()
        values.append(float(value.detach()))
    assert min(values[-3:]) < values[0]


CHECKS: tuple[Check, ...] = (
    check_identical,
    check_finite,
    check_gradient,
    check_weight,
    check_heads,
    check_options,
    check_ignored,
    check_sigmoid,
    check_absent_classes,
    check_batch_order,
    check_bfloat16,
    check_compiled,
    check_learning,
)


def method_contract(*methods: Method) -> pytest.MarkDecorator:
    """Decorate a test that has the parameter ``check`` and calls it. It then runs every check of every method
    in every situation."""
    cases = [
        pytest.param(functools.partial(check, method, situation), id=f"{method.name}-{check.__name__}-{situation}")
        for method in methods
        for check in CHECKS
        for situation in SITUATIONS
        if CONDITIONS.get(check.__name__, _always)(method, situation)
    ]
    return pytest.mark.parametrize("check", cases)


def _always(_method: Method, _situation: Situation) -> bool:
    return True


def _assert_trains_finitely(world: World) -> float:
    value = world.value()
    if value.requires_grad:
        value.backward()
    assert torch.isfinite(value)
    assert all(torch.isfinite(p.grad).all() for p in world.student.parameters() if p.grad is not None)
    return float(value.detach())


def _value_and_gradient(method: Method, situation: Situation) -> tuple[float, Tensor]:
    world = World(method, situation)
    value = world.value()
    value.backward()
    gradients = [p.grad.flatten() for p in world.student.parameters() if p.grad is not None]
    return float(value.detach()), torch.cat(gradients)


def _change(tensor: Tensor, by: float) -> Tensor:
    """Change a tensor, at any grid, where the finest target is ignored. Every channel changes by another amount,
    because a softmax ignores a constant added to all."""
    changed = tensor.detach().clone()
    factor = SIDE // tensor.shape[2]
    of_channels = by * torch.arange(1, tensor.shape[1] + 1).view(1, -1, *[1] * (tensor.ndim - 2))
    changed[:, :, IGNORED.start // factor : IGNORED.stop // factor] += of_channels
    return changed


def _alternatives(method: Method, name: str) -> Iterator[Method]:
    """The method with other valid values of one option."""
    for candidate in _candidates(getattr(method, name), type(method).model_fields[name].annotation):
        options = {**method.model_dump(), name: candidate}
        try:
            yield type(method).model_validate(options)
        except ValidationError:
            continue


def _candidates(value: Any, annotation: Any) -> list[Any]:
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, (int, float)):
        return [type(value)(other) for other in (2 * value, value + 1, value / 2, value - 1) if other != value]
    if isinstance(value, tuple):  # stages
        return [("encoder.0",), ("encoder.1",), ("encoder.0", "decoder.0")]
    if get_origin(annotation) is Literal:
        return [other for other in get_args(annotation) if other != value]
    return []
