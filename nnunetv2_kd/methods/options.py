"""Options of the distillation terms: one class per term, one field of `Terms` each."""

from typing import Literal

from pydantic import Field, field_validator

from nnunetv2_kd.config import CheckedOptions
from nnunetv2_kd.networks.stages import STAGE


class Term(CheckedOptions):
    """What every distillation term has."""

    weight: float = Field(1.0, ge=0, description="factor on the term in the total loss, before the schedule")


class VoxelKL(Term):
    """KL divergence of the class probabilities, mean over voxels, on every supervised head."""

    temperature: float = Field(1.0, gt=0)


class RegionKL(Term):
    """KL divergence averaged within each region, then over regions, on every supervised head."""

    temperature: float = Field(1.0, gt=0)
    membership: Literal["teacher", "labels"] = Field("teacher", description="whose regions")


class FeatureTerm(Term):
    """A term on tapped stages, counted from full resolution: encoder.0 is the first, encoder.-1 the deepest, and
    encoder.:-1 all but the deepest, as Python's slices."""

    stages: tuple[str, ...] = Field(("encoder.1", "decoder.0"), min_length=1)

    @field_validator("stages")
    @classmethod
    def _known_form(cls, stages: tuple[str, ...]) -> tuple[str, ...]:
        for stage in stages:
            if not STAGE.fullmatch(stage):
                raise ValueError(
                    f"unknown stage {stage!r}; expected encoder.<level>, decoder.<level> or a slice of levels, as "
                    "encoder.0, decoder.-1, encoder.:-1"
                )
        if len(set(stages)) != len(stages):
            raise ValueError(f"a stage is named twice in {list(stages)}")
        return stages


class ImportanceMap(FeatureTerm):
    """Where a stage is active (EMKD's IMD), summed over the stages."""


class RegionAffinity(FeatureTerm):
    """How alike the regions look to a stage (EMKD's RAD), summed over the stages."""


class RegionGraph(FeatureTerm):
    """How alike the regions of all samples look to a stage, over several hops (MSKD's RGD), summed over the stages."""

    hops: int = Field(3, ge=1, le=10, description="powers of the graph that are compared")


class FeatureFiltering(FeatureTerm):
    """Where a stage is active, region by region, counting what the teacher is decided on (MSKD's FFD)."""

    gamma: float = Field(1.0, gt=0, le=10, description="how much more decided voxels count")


class IntraClassVariation(FeatureTerm):
    """How far every voxel's features are from its region's mean (IFVD), summed over the stages."""


class ChannelWise(Term):
    """KL divergence of every channel's distribution over the voxels (CWD on logits), on every supervised head."""

    temperature: float = Field(4.0, gt=0)


class ClassAffinity(Term):
    """How the class probabilities overlap (CAKD), on every supervised head."""


class SoftDice(Term):
    """Soft Dice between the two networks' probabilities, on every supervised head."""


class Lovasz(Term):
    """Lovász-softmax against the teacher's decision, on every supervised head."""


class FitNet(FeatureTerm):
    """Mean squared error of the features behind a trained 1x1 convolution, summed over the stages."""


class ReCoKD(FeatureTerm):
    """Region-weighted features, attention and global context behind trained convolutions (ReCo-KD)."""

    stages: tuple[str, ...] = Field(("encoder.:-1",), min_length=1)


class Displacement(FeatureTerm):
    """How samples of a batch differ from each other (DPRD), over the encoder, with weights that grow with depth."""

    stages: tuple[str, ...] = Field(("encoder.:",), min_length=1)
    grid: int = Field(4, ge=1, le=32, description="cells per axis to which the features are averaged")
    ratio: float = Field(1.0, ge=0, description="factor on the part that compares lengths")


class Terms(CheckedOptions):
    """The distillation terms by name. One that is not named is not computed."""

    voxel_kl: VoxelKL | None = None
    region_kl: RegionKL | None = None
    channel_wise: ChannelWise | None = None
    class_affinity: ClassAffinity | None = None
    soft_dice: SoftDice | None = None
    lovasz: Lovasz | None = None
    importance_map: ImportanceMap | None = None
    region_affinity: RegionAffinity | None = None
    region_graph: RegionGraph | None = None
    feature_filtering: FeatureFiltering | None = None
    intra_class_variation: IntraClassVariation | None = None
    fitnet: FitNet | None = None
    recokd: ReCoKD | None = None
    displacement: Displacement | None = None

    def active(self) -> dict[str, Term]:
        """The terms that are named and whose weight is not 0."""
        named = {name: getattr(self, name) for name in type(self).model_fields}
        return {name: term for name, term in named.items() if term is not None and term.weight > 0}
