"""A student that starts as a part of its teacher.

Starting from some of a larger network's weights instead of random ones is called weight selection (Xu et al.,
"Initializing Models with Larger Ones", arXiv 2311.18823). As there, the first layers of every stage are taken. Their
channels are evenly spaced; ours are those whose filters have the largest L1 norm, as in pruning (Li et al., "Pruning
Filters for Efficient ConvNets", arXiv 1608.08710). Channels that are added or concatenated are chosen together (Fang et
al., "DepGraph", arXiv 2301.12900), so that every weight of the student sees the same channels as in the teacher.
"""

from collections.abc import Sequence
from typing import Any

import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from torch import Tensor, nn

from nnunetv2_kd.errors import KDError, listing

FAMILIES = (PlainConvUNet, ResidualEncoderUNet)
Kept = Tensor  # indices of a teacher's channels, ascending, one for each of the student's


@torch.no_grad()
def start_as_part(student: nn.Module, teacher: nn.Module) -> None:
    """Overwrite the student's weights with those of a selection of the teacher's channels.

    A student as wide and deep as its teacher becomes its copy.

    Args:
        student, teacher: both `PlainConvUNet` or both `ResidualEncoderUNet`, the student nowhere wider or deeper.

    Raises:
        KDError: lists why the student cannot be a part of this teacher; the student is then unchanged.
    """
    problems = _problems(student, teacher)
    if problems:
        raise KDError(
            listing("The student cannot begin as a part of this teacher (student.start):", problems)
            + "\nLeave out student.start, or name a teacher of the same architecture that is at least as wide and deep."
        )
    small: Any = student
    large: Any = teacher
    kept = torch.arange(_first_conv(large).weight.shape[1])
    if getattr(small.encoder, "stem", None) is not None:
        kept = _stem(small.encoder, large.encoder, kept)
    skips = []
    for of_student, of_teacher in zip(small.encoder.stages, large.encoder.stages, strict=True):
        kept = _stage(of_student, of_teacher, kept)
        skips.append(kept)
    for number, (of_student, of_teacher) in enumerate(zip(small.decoder.stages, large.decoder.stages, strict=True)):
        up_student, up_teacher = small.decoder.transpconvs[number], large.decoder.transpconvs[number]
        up = strongest(_norms(up_teacher, out_axis=1), up_student.weight.shape[1])
        _take(up_student, up_teacher, kept, up, transposed=True)
        joined = torch.cat([up, up_teacher.weight.shape[1] + skips[-(number + 2)]])
        kept = _convs(of_student.convs, of_teacher.convs, joined)
        head_student, head_teacher = small.decoder.seg_layers[number], large.decoder.seg_layers[number]
        _take(head_student, head_teacher, kept, torch.arange(head_teacher.weight.shape[0]))


def strongest(norms: Tensor, count: int) -> Kept:
    """Indices of the largest values, in ascending order; among equal values, the first are taken.

    Args:
        norms: ``(C,)``.
        count: how many.

    >>> strongest(torch.tensor([1.0, 3.0, 2.0, 3.0]), 2)
    tensor([1, 3])
    """
    return norms.argsort(descending=True, stable=True)[:count].sort().values


def _norms(conv: Any, out_axis: int = 0) -> Tensor:
    """L1 norm of the filter of every output channel ``(C,)``."""
    return conv.weight.detach().abs().transpose(0, out_axis).flatten(1).sum(1).cpu()


def _convs(student: Sequence[Any], teacher: Sequence[Any], kept: Kept) -> Kept:
    """Take the first convolutions of a stage, one after the other."""
    for of_student, of_teacher in zip(student, teacher, strict=False):
        out = strongest(_norms(of_teacher.conv), of_student.conv.weight.shape[0])
        _take_block(of_student, of_teacher, kept, out)
        kept = out
    return kept


def _stem(student: Any, teacher: Any, kept: Kept) -> Kept:
    """Take the stem. If the first stage's first block has no projection, its channels are the stem's, so that both are
    chosen together."""
    conv_s, conv_t = student.stem.convs[0], teacher.stem.convs[0]
    first = student.stages[0].blocks[0]
    norms = _norms(conv_t.conv)
    if _projection(first) is None:
        norms = norms + _stage_norms(student.stages[0], teacher.stages[0])
    out = strongest(norms, conv_s.conv.weight.shape[0])
    _take_block(conv_s, conv_t, kept, out)
    return out


def _stage(student: Any, teacher: Any, kept: Kept) -> Kept:
    """Take a stage of an encoder."""
    if hasattr(student, "blocks"):
        return _residual_stage(student, teacher, kept)
    return _convs(_plain_convs(student), _plain_convs(teacher), kept)


def _plain_convs(stage: Any) -> Sequence[Any]:
    return next(module for module in stage.modules() if hasattr(module, "convs")).convs


def _residual_stage(student: Any, teacher: Any, kept: Kept) -> Kept:
    """Take a residual stage. All of its blocks add to the same channels: the outputs of the first block's projection,
    or the stage's inputs if it has none."""
    if _projection(student.blocks[0]) is None:
        out = kept
    else:
        out = strongest(_stage_norms(student, teacher), student.output_channels)
    for of_student, of_teacher in zip(student.blocks, teacher.blocks, strict=False):
        projection = _projection(of_student)
        if projection is not None:
            _take_block(projection, _projection(of_teacher), kept, out)
        names = _conv_names(of_student)
        inside = kept
        for name in names[:-1]:
            conv_s, conv_t = getattr(of_student, name), getattr(of_teacher, name)
            chosen = strongest(_norms(conv_t.conv), conv_s.conv.weight.shape[0])
            _take_block(conv_s, conv_t, inside, chosen)
            inside = chosen
        _take_block(getattr(of_student, names[-1]), getattr(of_teacher, names[-1]), inside, out)
        kept = out
    return out


def _stage_norms(student: Any, teacher: Any) -> Tensor:
    """L1 norm per channel of a residual stage, summed over all filters whose outputs are added to it."""
    blocks = list(teacher.blocks)[: len(student.blocks)]
    added = [getattr(block, _conv_names(block)[-1]).conv for block in blocks]
    projection = _projection(blocks[0])
    return torch.stack([_norms(conv) for conv in [*added, *([] if projection is None else [projection.conv])]]).sum(0)


def _conv_names(block: Any) -> list[str]:
    """The names of a block's convolutions: two in a BasicBlockD, three in a BottleneckD."""
    return [name for name in ("conv1", "conv2", "conv3") if hasattr(block, name)]


def _projection(block: Any) -> Any:
    """The convolution in a residual block's skip connection; None if the skip is the identity."""
    if not isinstance(block.skip, nn.Sequential):
        return None
    return next((module for module in block.skip if hasattr(module, "conv")), None)


def _take_block(student: Any, teacher: Any, kept: Kept, out: Kept) -> None:
    """Take a convolution with its normalisation layer."""
    _take(student.conv, teacher.conv, kept, out)
    if hasattr(student, "norm"):
        for name, tensor in student.norm.state_dict().items():
            theirs = teacher.norm.state_dict()[name].to(tensor)
            tensor.copy_(theirs[out.to(theirs.device)] if theirs.ndim else theirs)


def _take(student: Any, teacher: Any, kept: Kept, out: Kept, transposed: bool = False) -> None:
    """Take a convolution's weights for some of its input and output channels, and its bias."""
    weight = teacher.weight.detach()
    rows, columns = (kept, out) if transposed else (out, kept)
    part = weight[rows.to(weight.device)][:, columns.to(weight.device)]
    student.weight.copy_(part)
    if student.bias is not None:
        student.bias.copy_(teacher.bias.detach()[out.to(weight.device)])


def _first_conv(network: nn.Module) -> Any:
    return next(module for module in network.modules() if isinstance(module, (nn.Conv2d, nn.Conv3d)))


def _problems(student: nn.Module, teacher: nn.Module) -> list[str]:
    """Why the student cannot be a part of the teacher, in words."""
    names = type(student).__name__, type(teacher).__name__
    if not (isinstance(student, FAMILIES) and type(student) is type(teacher)):
        return [
            f"architecture: the student is a {names[0]}, the teacher a {names[1]}; expected both to be PlainConvUNet "
            "or both ResidualEncoderUNet"
        ]
    if any(hasattr(module, "squeeze_excitation") for module in student.modules()):
        return ["squeeze and excitation: its channels cannot be selected"]
    small: Any = student
    large: Any = teacher
    problems = []
    for part in ("encoder.kernel_sizes", "encoder.strides"):
        one, other = (_plain(getattr(network.encoder, part.split(".")[1])) for network in (small, large))
        if one != other:
            problems.append(f"{part}: the student's {one}, the teacher's {other}")
    if problems:
        return problems
    if _outline(small).keys() - _outline(large).keys():
        return ["convolutions: the student has more of them than the teacher"]
    for name, (shape, of_kind) in _outline(small).items():
        theirs, their_kind = _outline(large)[name]
        if of_kind != their_kind:
            problems.append(
                f"{name}: the student's is {_with_article(of_kind)}, the teacher's {_with_article(their_kind)}"
            )
        elif len(shape) != len(theirs) or any(a > b for a, b in zip(shape, theirs, strict=True)):
            problems.append(f"{name}: the student's {shape} is larger than the teacher's {theirs}")
    heads = {network.decoder.seg_layers[0].weight.shape[0] for network in (small, large)}
    if len(heads) > 1 or _first_conv(small).weight.shape[1] != _first_conv(large).weight.shape[1]:
        problems.append("input channels or classes: the student's differ from the teacher's")
    projections = [[_projects(stage) for stage in network.encoder.stages] for network in (small, large)]
    if projections[0] != projections[1]:
        problems.append("residual stages: the student changes the number of channels where the teacher does not")
    return problems


def _with_article(noun: str) -> str:
    return f"{'an' if noun[0] in 'AEIO' else 'a'} {noun}"


def _projects(stage: Any) -> bool:
    return hasattr(stage, "blocks") and _projection(stage.blocks[0]) is not None


def _outline(network: nn.Module) -> dict[str, tuple[tuple[int, ...], str]]:
    """Every parameter's shape, and the kind of module that it belongs to."""
    return {
        f"{name}.{key}": (tuple(parameter.shape), type(module).__name__)
        for name, module in network.named_modules()
        for key, parameter in module.named_parameters(recurse=False)
    }


def _plain(value: Any) -> Any:
    return [list(entry) if isinstance(entry, (list, tuple)) else [entry] for entry in value]
