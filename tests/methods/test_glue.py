"""The code between a method's options and its formula, which no single check of the contract covers."""

import pytest
import torch

from nnunetv2_kd.methods import OWN_METHODS
from nnunetv2_kd.methods.lovasz import Lovasz, lovasz
from nnunetv2_kd.methods.region_affinity import RegionAffinity
from nnunetv2_kd.methods.soft_dice import SoftDice, soft_dice
from nnunetv2_kd.methods.step import Step
from nnunetv2_kd.testing import Situation, World
from tests.methods.given import region_affinity

BOTH = ("encoder.0", "decoder.0")
# it weighs stages by depth and compares encoder stages
SUMMED = [m for m in OWN_METHODS if "stages" in m.model_fields and m.name not in ("displacement", "recokd", "fitnet")]


@pytest.mark.parametrize("method", SUMMED, ids=lambda method: method.name)
def test_the_term_is_the_sum_over_its_stages(method):
    flat = Situation(2, "labels")
    values = [float(World(method(stages=stages), flat).value().detach()) for stages in (BOTH, BOTH[:1], BOTH[1:])]
    assert values[0] == pytest.approx(values[1] + values[2], rel=1e-5)
    assert min(values) > 0


@pytest.mark.parametrize(("method", "formula"), [(SoftDice, soft_dice), (Lovasz, lovasz)])
@pytest.mark.parametrize("kind", ["labels", "regions", "regions, ignored"])
def test_the_term_is_its_formula_on_every_head(method, formula, kind):
    world = World(method(), Situation(2, kind))
    heads, output_t = world.outputs()
    labels = world.situation.labels
    with torch.no_grad():
        expected = sum(
            weight * formula(z_s, z_t, labels.valid(y), labels.has_regions)
            for weight, z_s, z_t, y in zip((2 / 3, 1 / 3), heads, output_t.logits, world.targets, strict=True)
        )
    assert float(world.term(heads, output_t).detach()) == pytest.approx(float(expected), rel=1e-5)


def test_region_affinity_leaves_absent_regions_out():
    """One sample lacks a class: it has fewer pairs, not pairs with a cosine of 0."""
    stage = "encoder.0"
    world = World(RegionAffinity(stages=(stage,)), Situation(2, "labels"))
    world.targets[0][0] = world.targets[0][0].clamp(max=1)
    heads, output_t = world.outputs()
    regions = world.situation.labels.regions(world.targets[0])
    expected = region_affinity(world.features_s[stage].detach(), output_t.features[stage], regions)
    assert float(world.term(heads, output_t).detach()) == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize("kind", ["labels", "regions"])
def test_a_method_written_for_version_0_2_finds_the_former_name(kind):
    step = Step(Situation(2, kind).labels, [], [], [], [], {})
    assert step.sigmoid == step.uses_sigmoid == (kind == "regions")
