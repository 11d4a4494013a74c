"""Do teacher and student look at the same voxels and speak of the same labels?"""

from copy import deepcopy
from typing import Any

import numpy as np
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn

from nnunetv2_kd.errors import KDError, listing
from nnunetv2_kd.networks.stages import has_stages

CONFIGURATION_KEYS = (
    "spacing",
    "normalization_schemes",
    "use_mask_for_norm",
    "preprocessor_name",
    "resampling_fn_data",
    "resampling_fn_data_kwargs",
)


def check_same_task(
    teacher: tuple[dict, dict], student: tuple[dict, dict], teacher_configuration: str, student_configuration: str
) -> None:
    """Compare channels, labels, regions, spacing, normalisation, and the patch size with the teacher's total stride.

    Args:
        teacher, student: plans and dataset.json of each.
        teacher_configuration, student_configuration: which configuration of the plans.

    Raises:
        KDError: lists every difference, both sides shown.
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
        ("input channels", channels(dataset_t), channels(dataset_s)),
        ("labels", dataset_t.get("labels"), dataset_s.get("labels")),
        ("regions_class_order", dataset_t.get("regions_class_order"), dataset_s.get("regions_class_order")),
        ("axis order", plans_t.get("transpose_forward"), plans_s.get("transpose_forward")),
        ("patch dimensions", len(config_t["patch_size"]), len(config_s["patch_size"])),
        ("previous stage", config_t.get("previous_stage"), config_s.get("previous_stage")),
        *((key, config_t.get(key), config_s.get(key)) for key in CONFIGURATION_KEYS),
    ]
    if "CTNormalization" in config_s.get("normalization_schemes", ()):
        key = "foreground_intensity_properties_per_channel"
        compared.append((key, plans_t.get(key), plans_s.get(key)))
    problems = [f"{what}: teacher {t}, student {s}" for what, t, s in compared if not _equal(t, s)]
    if len(config_t["patch_size"]) == len(config_s["patch_size"]):
        problems += divisibility_problems(config_t, config_s["patch_size"])
    if problems:
        raise KDError(listing("Teacher and student do not fit together:", problems))


def channels(dataset_json: dict[str, Any]) -> Any:
    """Names of the input channels, under nnU-Net's new key or its old one."""
    return dataset_json.get("channel_names", dataset_json.get("modality"))


def patch_size(plans: dict[str, Any], configuration: str) -> list[int]:
    """Of a configuration of the plans."""
    return list(PlansManager(deepcopy(plans)).get_configuration(configuration).patch_size)


def check_patch(network: nn.Module, own: list[int], wanted: list[int]) -> None:
    """Whether a teacher can run on patches of the student's size, where it is no U-Net, whose strides tell.

    Args:
        network: the teacher's.
        own: the patch size that it was built for.
        wanted: the student's.

    Raises:
        KDError: where it cannot.
    """
    if not has_stages(network) and own != wanted:
        raise KDError(
            f"The teacher is a {type(network).__name__}, which runs on patches of the size that it was built for: "
            f"{own}. The student's are {wanted}. Give the student's plans this patch_size, or store the teacher "
            "(nnUNetv2_kd store)."
        )


def divisibility_problems(teacher_configuration: dict[str, Any], patch_size: list[int]) -> list[str]:
    """What keeps the teacher from running on a patch: a side that its total stride does not divide."""
    per_stage = teacher_configuration["architecture"]["arch_kwargs"].get("strides")
    if per_stage is None:  # no U-Net
        return []
    strides = np.prod(np.vstack(per_stage), axis=0)
    if all(side % stride == 0 for side, stride in zip(patch_size, strides, strict=True)):
        return []
    return [
        f"patch size: the student's {list(patch_size)} cannot be divided by the teacher's stride {strides.tolist()}"
    ]


def seen_validation_cases(
    splits: list[dict[str, list[str]]], teacher_fold: int | str, student_fold: int | str, validation: list[str]
) -> int | None:
    """How many of the student's validation cases the teacher was trained on.

    Args:
        splits: content of ``splits_final.json``.
        teacher_fold, student_fold: a fold's index or ``"all"``.
        validation: the student's validation cases.

    Returns:
        Their number, or None where the teacher's training cases are not known (a fold that is not in the file).
    """
    if str(teacher_fold) == str(student_fold):
        return len(validation) if str(student_fold) == "all" else 0
    if str(teacher_fold) == "all":
        return len(validation)
    fold = int(teacher_fold)
    return len(set(splits[fold]["train"]) & set(validation)) if fold < len(splits) else None


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return list(one) == list(other) and all(_equal(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(_equal(a, b) for a, b in zip(one, other, strict=True))
    if isinstance(one, float) and isinstance(other, (int, float)):
        return bool(np.isclose(one, other, rtol=1e-4))
    return bool(one == other)
