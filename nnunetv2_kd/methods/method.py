"""The base classes of distillation methods: options, needs from the teacher, trained parts, and the term itself.

A method is a class in a file of its own. Its fields are its options in the options file; ``__call__`` computes its term
of the loss from a training step. docs/own_method.md shows how to write one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import Field, field_validator
from torch import Tensor, nn

from nnunetv2_kd.config import CheckedOptions
from nnunetv2_kd.methods.step import Step
from nnunetv2_kd.networks.stages import STAGE

Temperature = Annotated[float, Field(ge=0.01, le=100, description="temperature of both networks")]


@dataclass(frozen=True)
class Needs:
    """What a method needs from the teacher; it may need several of these.

    Attributes:
        logits: `Step.logits_t`, or `Step.over_heads`.
        features: `Step.features_t` at the stages in the method's field ``stages``. Only a single running teacher has
            them: features of several teachers cannot be mixed, and a stored teacher has none.
        region_cosines: `Step.region_graphs` at the same stages. Every kind of teacher has them.
    """

    logits: bool = False
    features: bool = False
    region_cosines: bool = False


class Method(CheckedOptions):
    """One distillation method. Options are fields, with ranges and descriptions; unknown keys are refused.

    Attributes:
        name: the method's key under ``terms:``; default: the name of the class.
        needs: what it needs from the teacher.
        value_when_identical: the term's value for two identical networks; None if there is no fixed value.
        counts_ignored_voxels: whether voxels with the ignore label count; they may, if the method uses no labels.
    """

    name: ClassVar[str]
    needs: ClassVar[Needs]
    value_when_identical: ClassVar[float | None] = 0.0
    counts_ignored_voxels: ClassVar[bool] = False

    weight: float = Field(1.0, ge=0, description="factor on the term in the total loss, before the schedule")

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Refuse an unusable class when it is defined, not later in a training.

        Raises:
            TypeError: names what is missing.
        """
        super().__pydantic_init_subclass__(**kwargs)
        if not hasattr(cls, "name"):
            cls.name = cls.__name__
        needs = getattr(cls, "needs", None)
        if needs is None:
            return  # a base class
        if not isinstance(needs, Needs) or needs == Needs():
            raise TypeError(f"{cls.__name__}.needs must be a Needs that asks for something, found {needs!r}")
        if (needs.features or needs.region_cosines) and "stages" not in cls.model_fields:
            raise TypeError(
                f"{cls.__name__} needs features of stages, so it needs the field 'stages': derive from OnStages"
            )

    def __call__(self, step: Step) -> Tensor:
        """The term of one training step: a scalar with a gradient to the student, unweighted."""
        raise NotImplementedError(f"{type(self).__name__} computes nothing: it has no __call__")

    def trained_part(self, channels_s: Mapping[str, int], channels_t: Mapping[str, int], dims: int) -> nn.Module | None:
        """The module that the method trains with the student, freshly initialised, or None. `Step.trained_part` gives
        access to it. It is optimised and resumed with the student, but not exported.

        Args:
            channels_s, channels_t: channels of the method's stages in each network, by the student's stage names.
            dims: 2 or 3 spatial dimensions.
        """
        return None

    def check_batch(self, batch_size: int) -> list[str]:
        """Check that the method can be computed on batches of this size (per worker).

        Returns:
            Warnings for the log.

        Raises:
            KDError: if it cannot; says what to type.
        """
        return []


class OnStages(Method):
    """A method that compares stages of the networks, counted from full resolution: encoder.0 is the first, encoder.-1
    the deepest, and encoder.:-1 all but the deepest, as in Python."""

    stages: tuple[str, ...] = Field(("encoder.1", "decoder.0"), min_length=1, description="stages that are compared")

    @field_validator("stages")
    @classmethod
    def _known_form(cls, stages: tuple[str, ...]) -> tuple[str, ...]:
        for stage in stages:
            if not STAGE.fullmatch(stage):
                raise ValueError(
                    f"unknown stage {stage!r}; expected encoder.<level>, decoder.<level> or a slice of levels, such as "
                    "encoder.0, decoder.-1, encoder.:-1"
                )
        if len(set(stages)) != len(stages):
            raise ValueError(f"a stage is named twice in {list(stages)}")
        return stages


Methods = dict[str, Method]


def stages_of(method: Method) -> tuple[str, ...]:
    """The stages that a method compares; none if it uses logits alone."""
    return method.stages if isinstance(method, OnStages) else getattr(method, "stages", ())


def tapped_stages(methods: Methods) -> list[str]:
    """Every stage that any of the methods compares, each once."""
    return sorted({stage for method in methods.values() for stage in stages_of(method)})


def any_needs_logits(methods: Methods) -> bool:
    """Whether any method needs the teacher's logits."""
    return any(method.needs.logits for method in methods.values())


def methods_needing_features(methods: Methods) -> list[str]:
    """Names of the methods that need the teacher's features themselves, not only cosines between regions."""
    return [name for name, method in methods.items() if method.needs.features]
