"""Every distillation term by its name in the options: what it computes from a training step, and what it trains."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from nnunetv2_kd import methods
from nnunetv2_kd.errors import KDError
from nnunetv2_kd.methods import options
from nnunetv2_kd.methods.options import FeatureTerm, Term
from nnunetv2_kd.methods.step import Step
from nnunetv2_kd.networks.stages import resolve_stages, stage_channels, stage_modules

Channels = dict[str, int]


def voxel_kl(term: options.VoxelKL, step: Step) -> Tensor:
    return step.over_heads(
        lambda z_s, z_t, y: methods.voxel_kl(z_s, z_t, step.labels.valid(y), term.temperature, step.labels.has_regions)
    )


def region_kl(term: options.RegionKL, step: Step) -> Tensor:
    def of_head(z_s: Tensor, z_t: Tensor, y: Tensor) -> Tensor:
        regions = step.labels.regions(y) if term.membership == "labels" else None
        return methods.region_kl(z_s, z_t, regions, term.temperature, step.labels.has_regions)

    return step.over_heads(of_head)


def channel_wise(term: options.ChannelWise, step: Step) -> Tensor:
    return step.over_heads(lambda z_s, z_t, y: methods.channel_wise(z_s, z_t, step.labels.valid(y), term.temperature))


def class_affinity(_term: options.ClassAffinity, step: Step) -> Tensor:
    return step.over_heads(
        lambda z_s, z_t, y: methods.class_affinity(z_s, z_t, step.labels.valid(y), step.labels.has_regions)
    )


def soft_dice(_term: options.SoftDice, step: Step) -> Tensor:
    return step.over_heads(
        lambda z_s, z_t, y: methods.soft_dice(z_s, z_t, step.labels.valid(y), step.labels.has_regions)
    )


def lovasz(_term: options.Lovasz, step: Step) -> Tensor:
    return step.over_heads(lambda z_s, z_t, y: methods.lovasz(z_s, z_t, step.labels.valid(y), step.labels.has_regions))


def importance_map(term: options.ImportanceMap, step: Step) -> Tensor:
    return step.over_stages(term.stages, methods.importance_map_loss)


def region_affinity(term: options.RegionAffinity, step: Step) -> Tensor:
    def of_stage(stage: str) -> Tensor:
        edges_s, edges_t, present = step.graphs(stage)
        samples, regions = len(step.regions.codes), step.regions.count
        cosines_s, cosines_t = (own_blocks(edges, samples, regions) for edges in (edges_s, edges_t))
        return methods.affinity_difference(cosines_s, cosines_t, present.view(samples, regions))

    return torch.stack([of_stage(stage) for stage in term.stages]).sum()


def own_blocks(edges: Tensor, samples: int, regions: int) -> Tensor:
    """Of the cosines between all regions of a batch ``(B*K, B*K)`` those within each sample, ``(B, K, K)``."""
    return edges.view(samples, regions, samples, regions).diagonal(dim1=0, dim2=2).permute(2, 0, 1)


def region_graph(term: options.RegionGraph, step: Step) -> Tensor:
    return torch.stack([methods.graph_difference(*step.graphs(stage), term.hops) for stage in term.stages]).sum()


def feature_filtering(term: options.FeatureFiltering, step: Step) -> Tensor:
    return step.over_stages(term.stages, lambda f_s, f_t: methods.feature_filtering(f_s, f_t, step.regions, term.gamma))


def intra_class_variation(term: options.IntraClassVariation, step: Step) -> Tensor:
    return step.over_stages(term.stages, lambda f_s, f_t: methods.intra_class_variation(f_s, f_t, step.regions))


def fitnet(term: options.FitNet, step: Step) -> Tensor:
    return step.adapted("fitnet", term.stages)


def recokd(term: options.ReCoKD, step: Step) -> Tensor:
    return step.adapted("recokd", term.stages, step.regions)


def displacement(term: options.Displacement, step: Step) -> Tensor:
    return step.adapted("displacement", term.stages, step.regions)


TERMS: dict[str, Callable[[Any, Step], Tensor]] = {
    term.__name__: term
    for term in (
        voxel_kl,
        region_kl,
        channel_wise,
        class_affinity,
        soft_dice,
        lovasz,
        importance_map,
        region_affinity,
        region_graph,
        feature_filtering,
        intra_class_variation,
        fitnet,
        recokd,
        displacement,
    )
}

ADAPTERS: dict[str, Callable[[Any, Channels, Channels, int], nn.Module]] = {
    "fitnet": lambda term, of_student, of_teacher, dims: methods.FitNet(of_student, of_teacher, dims),
    "recokd": lambda term, of_student, of_teacher, dims: methods.ReCoKD(of_student, of_teacher, dims),
    "displacement": lambda term, of_student, of_teacher, dims: methods.Displacement(
        of_student, of_teacher, dims, term.grid, term.ratio
    ),
}

FROM_SEVERAL_TEACHERS = ("region_affinity", "region_graph")  # of the terms on features: they compare cosines only


def tapped_stages(terms: dict[str, Term]) -> list[str]:
    """Every stage that a term taps, each once."""
    return sorted({stage for term in terms.values() if isinstance(term, FeatureTerm) for stage in term.stages})


def need_logits(terms: dict[str, Term]) -> bool:
    """Whether any term looks at the teacher's logits, and not only at features."""
    return any(not isinstance(term, FeatureTerm) for term in terms.values())


def with_resolved_stages(terms: dict[str, Term], student: nn.Module) -> dict[str, Term]:
    """The terms with every stage's name spelt as the student's `stage_modules` spell it: ``encoder.-1`` and so on.

    Raises:
        KDError: where the student lacks a stage, or a term names one twice, once from the top and once from below.
    """
    resolved = dict(terms)
    for name, term in terms.items():
        if isinstance(term, FeatureTerm):
            available = stage_modules(student)
            stages = tuple(found for stage in term.stages for found in resolve_stages(stage, available))
            if len(set(stages)) != len(stages):
                raise KDError(f"terms.{name} names a stage twice: {', '.join(term.stages)} are {', '.join(stages)}.")
            resolved[name] = term.model_copy(update={"stages": stages})
    return resolved


def build_adapters(
    terms: dict[str, Term], student: nn.Module, teacher: nn.Module, stages: dict[str, str], dims: int
) -> nn.ModuleDict:
    """The trained parts of the terms, freshly initialised.

    Args:
        terms: with resolved stages.
        student, teacher: the two networks.
        stages: the student's stages to the teacher's, see `match_stages`.
        dims: 2 or 3.
    """
    of_student, of_teacher = stage_channels(student), stage_channels(teacher)
    built = {}
    for name, build in ADAPTERS.items():
        term = terms.get(name)
        if isinstance(term, FeatureTerm):
            own = {stage: of_student[stage] for stage in term.stages}
            built[name] = build(term, own, {stage: of_teacher[stages[stage]] for stage in term.stages}, dims)
    return nn.ModuleDict(built)


def check_terms(terms: dict[str, Term], teachers: int, batch_size: int) -> list[str]:
    """Whether the terms can be computed here.

    Args:
        terms: the active ones.
        teachers: how many teachers there are.
        batch_size: of one worker.

    Returns:
        Warnings for the log.

    Raises:
        KDError: where a term cannot be computed at all.
    """
    if teachers > 1:
        single = [n for n, term in terms.items() if isinstance(term, FeatureTerm) and n not in FROM_SEVERAL_TEACHERS]
        if single:
            raise KDError(
                f"{', '.join(single)} compares features, which several teachers cannot be mixed on. With several "
                f"teachers use terms on logits, {' and '.join(FROM_SEVERAL_TEACHERS)}; or name one teacher."
            )
    if "displacement" not in terms or batch_size > 2:
        return []
    if batch_size < 2:
        raise KDError(
            "displacement compares samples of a batch and needs at least two; this batch size is 1. Give the plans a "
            "larger one: nnUNetv2_kd plan ... --batch-size 4"
        )
    return [
        "WARNING: displacement: a batch of two has a single pair of samples, so the part that compares lengths is "
        "always 0. A larger batch lets it count: nnUNetv2_kd plan ... --batch-size 4"
    ]
