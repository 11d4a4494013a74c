"""Make a smaller network by writing smaller numbers into a plans file. Nothing else in the plans changes, so the
student reads the teacher's preprocessed data, and nnU-Net builds it like any other network."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_kd.errors import KDError
from nnunetv2_kd.nnunet.plans import Plans, check_configuration
from nnunetv2_kd.record import ShrinkRecord

RECORD = "kd_student"
WIDTH_KEYS = ("features_per_stage", "stem_channels", "bottleneck_channels")
DEPTH_KEYS = ("n_conv_per_stage", "n_conv_per_stage_decoder", "n_blocks_per_stage")


def shrink_record(plans: Plans) -> ShrinkRecord:
    """The record of how a student's plans were made."""
    return ShrinkRecord(**plans[RECORD])


def made_from(plans: Plans) -> str | None:
    """The name of the plans that these plans were made from; None if they are not a student's."""
    return shrink_record(plans).made_from if RECORD in plans else None


def scale_channels(value: Any, width: float) -> Any:
    """``value * width``, rounded to whole numbers, for a number or every entry of a list; None stays None.

    >>> scale_channels([32, 64], 0.3)
    [10, 19]
    """
    if value is None:
        return None
    if isinstance(value, (list, tuple)):
        return [scale_channels(entry, width) for entry in value]
    return int(value * width + 0.5)


def shrink_architecture(architecture: dict[str, Any], width: float, convs_per_stage: int | None) -> dict[str, Any]:
    """A copy of a plans file's ``architecture`` entry with fewer channels, and at most ``convs_per_stage``.

    Args:
        architecture: of a PlainConvUNet or ResidualEncoderUNet.
        width: factor on the channels, in (0, 1].
        convs_per_stage: upper limit on convolutions (or residual blocks) per stage; None leaves them.

    Raises:
        KDError: if a stage is left without channels, or the architecture has no channels per stage to shrink.

    >>> unet = {
    ...     "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
    ...     "arch_kwargs": {"features_per_stage": [32, 64], "n_conv_per_stage": 2, "n_conv_per_stage_decoder": 2},
    ... }
    >>> shrink_architecture(unet, 0.5, convs_per_stage=1)["arch_kwargs"]
    {'features_per_stage': [16, 32], 'n_conv_per_stage': 1, 'n_conv_per_stage_decoder': 1}
    """
    shrunken = deepcopy(architecture)
    kwargs = shrunken["arch_kwargs"]
    if "features_per_stage" not in kwargs:
        raise KDError(
            f"Cannot shrink {architecture['network_class_name']}: its plans have no features_per_stage. Known to work: "
            "PlainConvUNet and ResidualEncoderUNet."
        )
    for key in WIDTH_KEYS:
        if key in kwargs:
            kwargs[key] = scale_channels(kwargs[key], width)
    if isinstance(kwargs["features_per_stage"], int):
        kwargs["features_per_stage"] = [kwargs["features_per_stage"]] * kwargs["n_stages"]
    if min(kwargs["features_per_stage"]) < 1:
        found = architecture["arch_kwargs"]["features_per_stage"]
        raise KDError(
            f"Width {width:g} leaves a stage without channels: the teacher has {found}. "
            f"The smallest width is {0.5 / min(_as_list(found)):g}."
        )
    if convs_per_stage is not None:
        for key in DEPTH_KEYS:
            if key in kwargs:
                kwargs[key] = _at_most(kwargs[key], convs_per_stage)
    return shrunken


def shape_architecture(
    architecture: dict[str, Any], features: Sequence[int], convs_per_stage: int | None
) -> dict[str, Any]:
    """A copy of a plans file's ``architecture`` entry with these channels per stage.

    Args:
        architecture: of a PlainConvUNet or ResidualEncoderUNet.
        features: from full resolution down, one per stage.
        convs_per_stage: upper limit on convolutions (or residual blocks) per stage; None leaves them.

    Raises:
        KDError: if the network has another number of stages.
    """
    shaped = shrink_architecture(architecture, 1.0, convs_per_stage)
    kwargs = shaped["arch_kwargs"]
    before = kwargs["features_per_stage"]
    if len(features) != len(before):
        raise KDError(
            f"{len(features)} numbers of channels ({', '.join(map(str, features))}) for a network of {len(before)} "
            f"stages, whose channels are {', '.join(map(str, before))}. Give {len(before)} numbers."
        )
    kwargs["features_per_stage"] = [int(channels) for channels in features]
    if kwargs.get("stem_channels") is not None:
        kwargs["stem_channels"] = int(features[0])
    if kwargs.get("bottleneck_channels") is not None:
        kwargs["bottleneck_channels"] = scale_channels(kwargs["bottleneck_channels"], features[0] / before[0])
    return shaped


def shrink_plans(
    plans: Plans,
    widths: Mapping[str, float],
    convs_per_stage: int | None = None,
    name: str | None = None,
    features: Mapping[str, Sequence[int]] | None = None,
    latency: Mapping[str, Any] | None = None,
) -> Plans:
    """A student's plans.

    Args:
        plans: the teacher's, as read from its file; not changed.
        widths: factor on the channels, in (0, 1], for each configuration to shrink. The others stay as they are.
        convs_per_stage: upper limit on convolutions per stage.
        name: the student's plans name; None keeps the teacher's.
        features: channels per stage, by configuration; they take the place of its width.
        latency: the latencies asked for and measured, for the record.

    Returns:
        New plans whose key ``kd_student`` records where they come from.

    Raises:
        KDError: if a configuration is unknown or cannot be shrunk that far.
    """
    student = deepcopy(plans)
    manager = PlansManager(deepcopy(plans))
    for configuration, width in widths.items():
        check_configuration(plans, configuration)
        architecture = manager.get_configuration(configuration).configuration["architecture"]
        channels = (features or {}).get(configuration)
        student["configurations"][configuration]["architecture"] = (
            shrink_architecture(architecture, width, convs_per_stage)
            if channels is None
            else shape_architecture(architecture, channels, convs_per_stage)
        )
    student["plans_name"] = name or plans["plans_name"]
    student.get("kd", {}).pop("student", None)  # the plans now have the size from this option
    by_hand = {key: list(channels) for key, channels in features.items()} if features else None
    student[RECORD] = asdict(
        ShrinkRecord(plans["plans_name"], dict(widths), convs_per_stage, by_hand, dict(latency) if latency else None)
    )
    return student


def _as_list(value: Any) -> list[int]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _at_most(value: Any, limit: int) -> Any:
    return [min(entry, limit) for entry in value] if isinstance(value, (list, tuple)) else min(value, limit)
