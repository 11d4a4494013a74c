"""Check that teacher and student see the same voxels and use the same labels."""

from copy import deepcopy
from typing import Any

import numpy as np
from nnunetv2.preprocessing.normalization.map_channel_name_to_normalization import (
    channel_name_to_normalization_mapping,
)
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn

from nnunetv2_kd.errors import KDError, listing
from nnunetv2_kd.networks.stages import has_stages
from nnunetv2_kd.nnunet.teacher_labels import labels_without_ignore

CONFIGURATION_KEYS = (
    "spacing",
    "normalization_schemes",
    "use_mask_for_norm",
    "preprocessor_name",
    "resampling_fn_data",
    "resampling_fn_data_kwargs",
)


def check_same_task(
    teacher: tuple[dict, dict],
    student: tuple[dict, dict],
    teacher_configuration: str,
    student_configuration: str,
    labels: bool = True,
) -> None:
    """Compare channels, labels, regions, spacing and normalisation; and check that the teacher's total stride divides
    the patch size.

    Args:
        teacher, student: plans and dataset.json of each.
        teacher_configuration, student_configuration: the configuration in the plans of each.
        labels: whether to compare labels and regions.

    Raises:
        KDError: lists every difference, showing both sides.
    """
    (plans_t, dataset_t), (plans_s, dataset_s) = teacher, student
    _, *compared = _compared_datasets(dataset_t, dataset_s)
    problems = [f"{what}: teacher {t}, student {s}" for what, t, s in compared if labels and not _equal(t, s)]
    problems += voxel_problems(teacher, student, teacher_configuration, student_configuration)
    config_t = PlansManager(deepcopy(plans_t)).get_configuration(teacher_configuration).configuration
    config_s = PlansManager(deepcopy(plans_s)).get_configuration(student_configuration).configuration
    if len(config_t["patch_size"]) == len(config_s["patch_size"]):
        problems += divisibility_problems(config_t, config_s["patch_size"])
    if problems:
        raise KDError(listing("Teacher and student do not fit together:", problems))


def voxel_problems(
    teacher: tuple[dict, dict], student: tuple[dict, dict], teacher_configuration: str, student_configuration: str
) -> list[str]:
    """Why a teacher cannot use the student's preprocessed voxels; see `check_same_task`.

    Raises:
        KDError: if the teacher's plans have no such configuration.
    """
    (plans_t, dataset_t), (plans_s, dataset_s) = teacher, student
    manager_t, manager_s = PlansManager(deepcopy(plans_t)), PlansManager(deepcopy(plans_s))
    if teacher_configuration not in manager_t.available_configurations:
        raise KDError(
            f"The teacher's plans have no configuration {teacher_configuration!r}, only "
            f"{manager_t.available_configurations}."
        )
    config_t = manager_t.get_configuration(teacher_configuration).configuration
    config_s = manager_s.get_configuration(student_configuration).configuration
    compared = [
        _compared_datasets(dataset_t, dataset_s)[0],
        ("image reader", _reader(plans_t), _reader(plans_s)),
        ("axis order", plans_t.get("transpose_forward"), plans_s.get("transpose_forward")),
        ("patch dimensions", len(config_t["patch_size"]), len(config_s["patch_size"])),
        ("previous stage", config_t.get("previous_stage"), config_s.get("previous_stage")),
        *((key, config_t.get(key), config_s.get(key)) for key in CONFIGURATION_KEYS),
    ]
    if "CTNormalization" in config_s.get("normalization_schemes", ()):
        key = "foreground_intensity_properties_per_channel"
        compared.append((key, plans_t.get(key), plans_s.get(key)))
    return [f"{what}: teacher {t}, student {s}" for what, t, s in compared if not _equal(t, s)]


def _reader(plans: dict[str, Any]) -> str | None:
    """The nnU-Net class that reads the images; the two classes that give the same orientation count as one."""
    name = plans.get("image_reader_writer")
    return "SimpleITKIO" if name == "NibabelIO" else name


def channels(dataset_json: dict[str, Any]) -> Any:
    """Names of the input channels, under nnU-Net's new key or its old one."""
    return dataset_json.get("channel_names", dataset_json.get("modality"))


def _compared_datasets(teacher: dict[str, Any], student: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    return [
        ("input channels", *channel_meanings(teacher, student)),
        ("labels", label_meaning(teacher), label_meaning(student)),
        ("regions_class_order", teacher.get("regions_class_order"), student.get("regions_class_order")),
    ]


def same_labels(teacher: dict[str, Any], student: dict[str, Any]) -> bool:
    """Whether the heads of two dataset.json mean the same, in the same order."""
    return all(_equal(t, s) for _, t, s in _compared_datasets(teacher, student)[1:])


def same_labels_and_channels(teacher: dict[str, Any], student: dict[str, Any]) -> bool:
    """Whether two dataset.json have the same channels and labels."""
    return all(_equal(t, s) for _, t, s in _compared_datasets(teacher, student))


def label_meaning(dataset_json: dict[str, Any]) -> Any:
    """Labels or regions in the order of the heads: labels by value, regions as listed. The ignore label has no head."""
    if not isinstance(dataset_json.get("labels"), dict):
        return dataset_json.get("labels")
    labels = labels_without_ignore(dataset_json)
    plain = {name: v[0] if isinstance(v, (list, tuple)) and len(v) == 1 else v for name, v in labels.items()}
    if any(isinstance(value, (list, tuple)) for value in plain.values()):
        return labels
    return dict(sorted(plain.items(), key=lambda item: int(item[1])))


def channel_meanings(teacher: dict[str, Any], student: dict[str, Any]) -> tuple[Any, Any]:
    """The channel names to compare. Upper and lower case are equal. So are any two names of a single channel, such as
    MRI and T1, unless nnU-Net chooses the normalisation by one of them, as for CT."""
    names_t, names_s = _channel_names(teacher), _channel_names(student)
    if names_t is None or names_s is None:
        return channels(teacher), channels(student)
    lower_t, lower_s = ([name.casefold() for name in names] for names in (names_t, names_s))
    only_one = len(names_t) == len(names_s) == 1
    if lower_t == lower_s or (only_one and not {*lower_t, *lower_s} & {*channel_name_to_normalization_mapping}):
        return names_s, names_s
    return names_t, names_s


def renamed_channel(teacher: dict[str, Any], student: dict[str, Any]) -> list[str]:
    """A line for the log if a single channel has two names."""
    names_t, names_s = _channel_names(teacher), _channel_names(student)
    if names_t is None or names_s is None or len(names_t) != 1 or names_t[0].casefold() == names_s[0].casefold():
        return []
    return [f"The teacher's only channel is called {names_t[0]}, the student's {names_s[0]}: treated as the same."]


def _channel_names(dataset_json: dict[str, Any]) -> list[str] | None:
    """The channel names in the order of their numbers; None if they are not written in nnU-Net's form."""
    named = channels(dataset_json)
    if not isinstance(named, dict) or not all(str(key).isdigit() for key in named):
        return None
    return [str(named[key]) for key in sorted(named, key=lambda key: int(key))]


def patch_size(plans: dict[str, Any], configuration: str) -> list[int]:
    """The patch size of a configuration."""
    return list(PlansManager(deepcopy(plans)).get_configuration(configuration).patch_size)


def check_patch(network: nn.Module, own: list[int], wanted: list[int]) -> None:
    """Check that a teacher can run on patches of the student's size. For a U-Net, its strides tell this already.

    Args:
        network: the teacher's.
        own: the patch size that it was built for.
        wanted: the student's patch size.

    Raises:
        KDError: if it cannot.
    """
    if not has_stages(network) and own != wanted:
        raise KDError(
            f"The teacher is a {type(network).__name__}, which only runs on patches of the size that it was built for, "
            f"{own}. The student's are {wanted}. Give the student's plans this patch_size, or store the teacher "
            "(nnUNetv2_kd store)."
        )


def divisibility_problems(teacher_configuration: dict[str, Any], patch_size: list[int]) -> list[str]:
    """Why the teacher cannot run on a patch: a side that its total stride does not divide."""
    per_stage = teacher_configuration["architecture"]["arch_kwargs"].get("strides")
    if per_stage is None:  # not a U-Net
        return []
    strides = np.prod(np.vstack(per_stage), axis=0)
    if all(side % stride == 0 for side, stride in zip(patch_size, strides, strict=True)):
        return []
    return [f"patch size: the student's {list(patch_size)} is not divisible by the teacher's stride {strides.tolist()}"]


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return list(one) == list(other) and all(_equal(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(_equal(a, b) for a, b in zip(one, other, strict=True))
    if isinstance(one, float) and isinstance(other, (int, float)):
        return bool(np.isclose(one, other, rtol=1e-4))
    return bool(one == other)
