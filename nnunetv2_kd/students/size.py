"""Find the width for the size that the user asked for."""

from collections.abc import Callable, Sequence
from typing import Any

from nnunetv2_kd.config import StudentOptions, parse_budget, parse_features
from nnunetv2_kd.errors import KDError
from nnunetv2_kd.formatting import format_count
from nnunetv2_kd.networks.cost import network_cost
from nnunetv2_kd.nnunet.plans import Plans, check_configuration
from nnunetv2_kd.students.shrink import RECORD, made_from, shrink_plans

DEFAULT_WIDTH = 0.5
BISECTIONS = 20
NEARLY_THE_TEACHER = 0.9  # share of the teacher's parameters, or FLOPs


def width_for(plans: Plans, configuration: str, dataset_json: dict[str, Any], student: StudentOptions) -> float:
    """The width for the user's options; for a budget, the largest width within it.

    Args:
        plans: the teacher's.
        configuration: the configuration that must stay within the budget.
        dataset_json: as in nnU-Net.
        student: the options.

    Raises:
        KDError: if even the narrowest network is over the budget, or the student would be nearly the teacher's size.
    """
    if student.params is None and student.flops is None:
        return student.width if student.width is not None else DEFAULT_WIDTH
    quantity = "params" if student.params is not None else "flops"
    number, is_fraction = parse_budget(getattr(student, quantity))

    def size(width: float) -> int:
        shrunken = shrink_plans(plans, {configuration: width}, student.convs_per_stage)
        return getattr(network_cost(shrunken, configuration, dataset_json), quantity)

    budget = number * getattr(network_cost(plans, configuration, dataset_json), quantity) if is_fraction else number
    features = plans_features(plans, configuration)
    low, high = 0.5 / min(features), 1.0  # below `low` the narrowest stage rounds to no channel
    if size(low) > budget:
        raise KDError(
            f"No student of {configuration} has {quantity} <= {format_count(budget)}: the narrowest network has "
            f"{format_count(size(low))}. Ask for more, or for fewer convolutions per stage."
        )
    width = high if size(high) <= budget else _widest(size, low, high, budget)
    teacher = getattr(network_cost(plans, configuration, dataset_json), quantity)
    if size(width) > NEARLY_THE_TEACHER * teacher:
        least, most = (format_count(number) for number in (size(0.5 / min(features)), NEARLY_THE_TEACHER * teacher))
        fraction = " (a number up to 1 is a fraction of the teacher)" if is_fraction else ""
        raise KDError(
            f"{quantity}: {getattr(student, quantity)} asks for at most {format_count(budget)}{fraction}. The teacher "
            f"of {configuration} has {format_count(teacher)}, so the student would be as large or nearly so. Ask for "
            f"less: between {least} and {most}, or for a fraction such as {quantity}: 0.25."
        )
    return width


def _widest(size: Callable[[float], int], low: float, high: float, budget: float) -> float:
    """The largest width within a budget, between one that is within it and one that is not."""
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if size(middle) <= budget else (low, middle)
    rounded = round(low, 4)
    return rounded if rounded >= low and size(rounded) <= budget else low


def plans_features(plans: Plans, configuration: str) -> list[int]:
    """Channels per stage of a configuration, even if inherited from another."""
    whole = shrink_plans(plans, {configuration: 1.0})
    return list(whole["configurations"][configuration]["architecture"]["arch_kwargs"]["features_per_stage"])


def relative_width(plans: Plans, configuration: str, features: Sequence[int]) -> float:
    """The channels at full resolution, relative to those of the plans."""
    return round(features[0] / plans_features(plans, configuration)[0], 4)


def student_plans(
    plans: Plans, configuration: str, dataset_json: dict[str, Any], student: StudentOptions
) -> tuple[Plans, bool]:
    """The plans that a trainer trains: the given plans if they are already a student's, otherwise a student of them.

    Returns:
        The student's plans, and whether they were made here.

    Raises:
        KDError: if the options ask for a size although the plans have already been shrunk.
    """
    check_configuration(plans, configuration)
    if made_from(plans) is None:
        if student.latency is not None:
            raise KDError(
                f"student.latency ({student.latency}) must be measured before training, on the machine that predicts: "
                f"nnUNetv2_kd plan -d {plans['dataset_name']} -c {configuration} -p {plans['plans_name']} --latency "
                f"{student.latency} -o {plans['plans_name']}Fast\nThen train with -p {plans['plans_name']}Fast"
            )
        if student.features is not None:
            features = {configuration: parse_features(student.features)}
            widths = {configuration: relative_width(plans, configuration, features[configuration])}
            return shrink_plans(plans, widths, student.convs_per_stage, features=features), True
        width = width_for(plans, configuration, dataset_json, student)
        return shrink_plans(plans, {configuration: width}, student.convs_per_stage), True
    measured = (plans[RECORD].get("latency") or {}).get("asked")
    asked = sorted(
        name
        for name in type(student).model_fields
        if name != "start"
        and getattr(student, name) is not None
        and not (name == "latency" and student.latency == measured)
    )
    if asked:
        raise KDError(
            f"The options ask for student.{asked[0]}, but the plans {plans['plans_name']} are already a student's, "
            f"made from {made_from(plans)}. Remove the option, or train with -p {made_from(plans)}."
        )
    return plans, False
