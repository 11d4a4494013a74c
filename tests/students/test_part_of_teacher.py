"""A student that starts as a part of its teacher: if the teacher's other channels are 0, both networks
predict the same."""

import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from torch import nn

from nnunetv2_kd.errors import KDError
from nnunetv2_kd.students.part_of_teacher import start_as_part, strongest

CONV = {2: (nn.Conv2d, nn.InstanceNorm2d), 3: (nn.Conv3d, nn.InstanceNorm3d)}


def plain(features, dim=2, convs=2, classes=3, channels=2, bias=True, norm=None, kernel=3):
    conv, instance_norm = CONV[dim]
    return PlainConvUNet(
        channels,
        len(features),
        features,
        conv,
        kernel,
        [1, *[2] * (len(features) - 1)],
        convs,
        classes,
        convs,
        conv_bias=bias,
        norm_op=norm or instance_norm,
        norm_op_kwargs={"affine": True},
        nonlin=nn.LeakyReLU,
        deep_supervision=True,
    )


def residual(features, blocks=2, classes=3):
    return ResidualEncoderUNet(
        2,
        len(features),
        features,
        nn.Conv2d,
        3,
        [1, *[2] * (len(features) - 1)],
        blocks,
        classes,
        1,
        conv_bias=True,
        norm_op=nn.InstanceNorm2d,
        norm_op_kwargs={"affine": True},
        nonlin=nn.LeakyReLU,
        deep_supervision=True,
    )


def half_of(count, rng):
    return torch.randperm(count, generator=rng)[: count // 2]


def silence(block, channels):
    """Set channels to 0 for every input."""
    block.conv.weight[channels] = 0
    block.conv.bias[channels] = 0
    block.norm.weight[channels] = 0
    block.norm.bias[channels] = 0


@torch.no_grad()
def silence_half(network, rng):
    for parameter in network.parameters():  # norms' weights and biases too, which are 1 and 0 in a new network
        parameter.copy_(torch.rand(parameter.shape, generator=rng) - 0.5)
    encoder, decoder = network.encoder, network.decoder
    if hasattr(encoder, "stem"):
        outs = [half_of(count, rng) for count in encoder.output_channels]
        silence(encoder.stem.convs[0], outs[0])
        for stage, out in zip(encoder.stages, outs, strict=True):
            for block in stage.blocks:
                silence(block.conv1, half_of(block.conv1.output_channels, rng))
                silence(block.conv2, out)
                if isinstance(block.skip, nn.Sequential):
                    silence_projection(block.skip, out)
    else:
        for stage in encoder.stages:
            for block in stage[0].convs:
                silence(block, half_of(block.output_channels, rng))
    for stage, up in zip(decoder.stages, decoder.transpconvs, strict=True):
        channels = half_of(up.weight.shape[1], rng)
        up.weight[:, channels] = 0
        up.bias[channels] = 0
        for block in stage.convs:
            silence(block, half_of(block.output_channels, rng))


def silence_projection(skip, channels):
    for module in skip:
        if hasattr(module, "conv"):  # it has no bias
            module.conv.weight[channels] = 0
            module.norm.weight[channels] = 0
            module.norm.bias[channels] = 0


@pytest.mark.parametrize(
    ("teacher", "student", "shape"),
    [
        (plain([8, 16, 32]), plain([4, 8, 16]), (1, 2, 16, 16)),
        (plain([4, 8], dim=3), plain([2, 4], dim=3), (1, 2, 8, 8, 8)),
        (residual([8, 16, 32]), residual([4, 8, 16]), (1, 2, 16, 16)),
        (residual([8, 8, 16]), residual([4, 4, 8]), (1, 2, 16, 16)),
    ],
    ids=["plain", "plain 3d", "residual", "residual, a stage that adds to what comes in"],
)
def test_a_student_is_the_part_of_its_teacher_that_does_something(teacher, student, shape, rng):
    silence_half(teacher, rng)
    if list(teacher.encoder.output_channels[:2]) == [8, 8]:
        share_first_two_stages(teacher, rng)
    start_as_part(student, teacher)
    image = torch.rand(shape, generator=rng)
    with torch.no_grad():
        for mine, theirs in zip(student(image), teacher(image), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
            assert mine.std() > 0.01


@torch.no_grad()
def share_first_two_stages(network, rng):
    """The second stage adds to the first stage's channels directly, so the same channels are 0 in both."""
    encoder = network.encoder
    silent = (encoder.stem.convs[0].norm.weight == 0).nonzero().flatten()
    for block in encoder.stages[1].blocks:
        for parameter in block.conv2.parameters():
            parameter.copy_(torch.rand(parameter.shape, generator=rng) - 0.5)
        silence(block.conv2, silent)


@pytest.mark.parametrize("make", [plain, residual])
def test_a_student_as_large_as_its_teacher_becomes_its_copy(make):
    teacher, student = make([4, 8]), make([4, 8])
    start_as_part(student, teacher)
    for name, parameter in student.state_dict().items():
        assert torch.equal(parameter, teacher.state_dict()[name]), name


def test_a_student_with_fewer_convolutions_begins_with_the_first():
    teacher, student = plain([4, 8], convs=2), plain([4, 8], convs=1)
    start_as_part(student, teacher)
    name = "encoder.stages.0.0.convs.0.conv.weight"
    assert torch.equal(student.state_dict()[name], teacher.state_dict()[name])


def test_the_strongest_channels_keep_their_order():
    assert strongest(torch.tensor([1.0, 5.0, 2.0, 5.0, 0.0]), 3).tolist() == [1, 2, 3]


def test_statistics_of_batch_norms_come_along():
    teacher, student = plain([4, 8], norm=nn.BatchNorm2d), plain([2, 4], norm=nn.BatchNorm2d)
    teacher.encoder.stages[0][0].convs[0].norm.running_mean.copy_(torch.arange(4.0))
    start_as_part(student, teacher)
    kept = student.encoder.stages[0][0].convs[0].norm.running_mean.tolist()
    conv = teacher.encoder.stages[0][0].convs[0].conv.weight
    assert kept == [float(i) for i in strongest(conv.abs().flatten(1).sum(1), 2)]


@pytest.mark.parametrize(
    ("student", "words"),
    [
        (residual([4, 8]), "the student is a ResidualEncoderUNet, the teacher a PlainConvUNet"),
        (plain([8, 8]), "is larger than the teacher's"),
        (plain([4, 8, 16]), "encoder.kernel_sizes"),
        (plain([4, 8], convs=3), "the student has more of them than the teacher"),
        (plain([4, 8], classes=4), "is larger than the teacher's"),
        (plain([4, 8], classes=2), "input channels or classes"),
        (plain([4, 8], channels=1), "input channels or classes"),
        (plain([4, 8], kernel=5), "encoder.kernel_sizes"),
        (plain([4, 8], dim=3), "encoder.strides"),
        (plain([4, 8], norm=nn.BatchNorm2d), "the student's is a BatchNorm2d, the teacher's an InstanceNorm2d"),
    ],
)
def test_a_student_that_is_no_part_of_its_teacher_is_refused_and_left_alone(student, words):
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    with pytest.raises(KDError, match="cannot begin as a part of this teacher") as refusal:
        start_as_part(student, plain([4, 8]))
    assert words in str(refusal.value)
    assert all(torch.equal(before[name], tensor) for name, tensor in student.state_dict().items())
