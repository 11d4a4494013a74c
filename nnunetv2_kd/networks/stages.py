"""The stages of a U-Net: their names, strides and channels, and which teacher stage matches which student stage."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from torch import nn

from nnunetv2_kd.errors import KDError

STAGE = re.compile(r"(encoder|decoder)\.(-?\d+|(-?\d+)?:(-?\d+)?)")
Stride = tuple[int, ...]


def has_stages(network: nn.Module) -> bool:
    """Whether the network is built like the U-Nets of dynamic_network_architectures."""
    encoder, decoder = getattr(network, "encoder", None), getattr(network, "decoder", None)
    return hasattr(encoder, "stages") and hasattr(encoder, "strides") and hasattr(decoder, "stages")


def stage_modules(network: nn.Module) -> dict[str, tuple[nn.Module, Stride]]:
    """Every stage of a U-Net, counted from full resolution, with its stride relative to the input.

    Args:
        network: with ``encoder.stages``, ``encoder.strides`` and ``decoder.stages``, as all U-Nets of
            dynamic_network_architectures have.

    Raises:
        KDError: if the network is built differently.
    """
    encoder: Any = getattr(network, "encoder", None)
    decoder: Any = getattr(network, "decoder", None)
    if not has_stages(network):
        raise KDError(
            f"Terms on features need a U-Net with encoder and decoder stages; {type(network).__name__} has none. "
            "Use terms on logits only (voxel_kl, region_kl)."
        )
    strides = [tuple(int(s) for s in stride) for stride in np.cumprod(np.vstack(encoder.strides), axis=0)]
    stages = {f"encoder.{level}": (stage, strides[level]) for level, stage in enumerate(encoder.stages)}
    decoder_stages = list(decoder.stages)[::-1]  # run from the deepest up, but counted from full resolution down
    return stages | {f"decoder.{level}": (stage, strides[level]) for level, stage in enumerate(decoder_stages)}


def resolve_stages(name: str, available: Iterable[str]) -> list[str]:
    """Replace ``encoder.-1`` by the name of the deepest encoder stage, ``encoder.:-1`` by those of all but the deepest.

    Raises:
        KDError: if the network has no such stage.
    """
    available = list(available)
    match = STAGE.fullmatch(name)
    if match is not None:
        part, levels = match[1], match[2]
        of_part = [stage for stage in available if stage.startswith(part)]
        if ":" in levels:
            start, stop = (int(bound) if bound else None for bound in levels.split(":"))
            found = of_part[start:stop]
        else:
            level = int(levels)
            found = [of_part[level]] if -len(of_part) <= level < len(of_part) else []
        if found:
            return found
    raise KDError(f"The student has no stage {name!r}. Its stages are {', '.join(available)}.")


def match_stages(names: Iterable[str], student: nn.Module, teacher: nn.Module) -> dict[str, str]:
    """For each stage of the student, find the teacher's stage with the same stride in the same part (encoder, decoder).

    Returns:
        The teacher's stage name, keyed by the student's as `resolve_stages` spells it.

    Raises:
        KDError: if the teacher has no stage of that stride.
    """
    of_student, of_teacher = (
        {name: stride for name, (_, stride) in stage_modules(network).items()} for network in (student, teacher)
    )
    return match_strides(names, of_student, of_teacher)


def match_strides(
    names: Iterable[str], of_student: Mapping[str, Stride], of_teacher: Mapping[str, Stride]
) -> dict[str, str]:
    """Like `match_stages`, for networks whose stages and strides are known."""
    matched = {}
    for stage in (stage for name in names for stage in resolve_stages(name, of_student)):
        part, stride = stage.split(".")[0], of_student[stage]
        same = [other for other, s in of_teacher.items() if s == stride and other.startswith(part)]
        if not same:
            offered = ", ".join(f"{other} {s}" for other, s in of_teacher.items())
            raise KDError(
                f"The teacher has no {part} stage of stride {stride}, which the student's {stage} has. "
                f"The teacher's stages and strides: {offered}."
            )
        matched[stage] = same[-1]
    return matched


def nearest_strides(
    names: Iterable[str], of_student: Mapping[str, Stride], of_teacher: Mapping[str, Stride]
) -> dict[str, str]:
    """For each stage of the student, find the teacher's stage in the same part with the nearest stride (ours). For
    networks that see images at different spacings or in 2 and 3 dimensions, where equal strides mean nothing.

    Between a 3d and a 2d network, only the last two strides, those within the plane, are compared.
    """
    matched = {}
    for stage in (stage for name in names for stage in resolve_stages(name, of_student)):
        part, stride = stage.split(".")[0], of_student[stage]

        def distance(other: str, stride: Stride = stride) -> float:
            theirs = of_teacher[other]
            shared = min(len(stride), len(theirs))
            return float(np.abs(np.log2(stride[-shared:]) - np.log2(theirs[-shared:])).sum())

        candidates = [other for other in of_teacher if other.startswith(part)]
        matched[stage] = min(reversed(candidates), key=distance)
    return matched


def stage_channels(network: nn.Module) -> dict[str, int]:
    """Channels of every stage; a decoder stage has as many as the encoder stage at its level."""
    encoder: Any = network.encoder
    return {name: int(encoder.output_channels[int(name.split(".")[1])]) for name in stage_modules(network)}
