"""Shapes that a student may have: channels per stage, and convolutions in each."""

from dataclasses import dataclass
from typing import Any

from nnunetv2_kd.networks.cost import Cost, network_cost
from nnunetv2_kd.nnunet.plans import Plans
from nnunetv2_kd.students.shrink import DEPTH_KEYS, shrink_plans
from nnunetv2_kd.students.size import plans_features, relative_width

FIRST = (4, 8, 16, 24, 32, 48, 64)  # channels at full resolution; runtimes compute 8 or 16 at a time
GROWTHS = (2.0, 1.5)  # growth of channels from stage to stage; nnU-Net doubles them
MULTIPLE = 8  # of channels below full resolution


@dataclass(frozen=True)
class Shape:
    """One network.

    Attributes:
        features: channels per stage, from full resolution down.
        convs_per_stage: upper limit on convolutions per stage; None keeps the plans'.
        cost: parameters, FLOPs and activation memory.
    """

    features: tuple[int, ...]
    convs_per_stage: int | None
    cost: Cost

    def __str__(self) -> str:
        convs = "" if self.convs_per_stage is None else f", {self.convs_per_stage} a stage"
        return "-".join(map(str, self.features)) + convs

    def plans(self, plans: Plans, configuration: str, name: str | None = None, latency: Any = None) -> Plans:
        """The plans with this network."""
        widths = {configuration: relative_width(plans, configuration, self.features)}
        return shrink_plans(plans, widths, self.convs_per_stage, name, {configuration: self.features}, latency)


def shape_of(
    plans: Plans, configuration: str, dataset_json: dict[str, Any], features: list[int], convs: int | None
) -> Shape:
    """A shape with its cost."""
    widths = {configuration: 1.0}
    made = shrink_plans(plans, widths, convs, features={configuration: features})
    return Shape(tuple(features), convs, network_cost(made, configuration, dataset_json))


def candidates(plans: Plans, configuration: str, dataset_json: dict[str, Any]) -> list[Shape]:
    """The teacher's own shape, then every candidate shape, largest capacity first.

    The candidates have channel counts at full resolution that runtimes compute well. From stage to stage they grow by
    2 (nnU-Net's way) or by 1.5, never beyond the teacher's. Each is tried with the teacher's convolutions per stage and
    with one.

    Capacity is ranked by FLOPs per patch. A ranking by parameters would depend on the deepest stages, which hold most
    of them but see only a few hundred voxels; a narrow student lacks computation at the fine stages.
    """
    teacher = plans_features(plans, configuration)
    own = shape_of(plans, configuration, dataset_json, teacher, None)
    found: dict[tuple[tuple[int, ...], int | None], Shape] = {}
    for first in (channels for channels in FIRST if channels <= teacher[0]):
        for growth in GROWTHS:
            features = _grown(first, growth, teacher)
            for convs in (None, 1) if _deepest(plans, configuration) > 1 else (None,):
                key = (tuple(features), convs)
                if key not in found and key != (tuple(teacher), None):
                    found[key] = shape_of(plans, configuration, dataset_json, features, convs)
    return [own, *sorted(found.values(), key=lambda shape: -shape.cost.flops)]


def wider_and_shallower(plans: Plans, student: Plans, configuration: str) -> list[int] | None:
    """Channels for a shape that is about as fast as a narrow student, and better: twice as many, with one convolution
    per stage (docs/results.md, study 9).

    Args:
        plans: the teacher's.
        student: its student's, in which a stage may have several convolutions.
        configuration: of both.

    Returns:
        Channels per stage; None if the student is not narrow, or has one convolution per stage already.
    """
    features = plans_features(student, configuration)
    if features[0] >= MULTIPLE or _deepest(student, configuration) == 1:
        return None
    return [min(2 * own, most) for own, most in zip(features, plans_features(plans, configuration), strict=True)]


def _grown(first: int, growth: float, teacher: list[int]) -> list[int]:
    features = [first]
    for stage in range(1, len(teacher)):
        wanted = first * growth**stage
        rounded = max(MULTIPLE, MULTIPLE * round(wanted / MULTIPLE)) if wanted >= MULTIPLE else int(wanted)
        # nnU-Net stops doubling at a maximum; a narrower student stops at the same fraction of it
        features.append(min(rounded, max(1, teacher[stage] * first // teacher[0]) if growth == 2.0 else teacher[stage]))
    return features


def _deepest(plans: Plans, configuration: str) -> int:
    """The largest number of convolutions (or blocks) in a stage."""
    made = shrink_plans(plans, {configuration: 1.0})
    kwargs = made["configurations"][configuration]["architecture"]["arch_kwargs"]
    values = [kwargs[key] for key in DEPTH_KEYS if key in kwargs]
    return max(max(value) if isinstance(value, (list, tuple)) else value for value in values)
