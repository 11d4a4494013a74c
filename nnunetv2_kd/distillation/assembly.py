"""Connect a student, its teacher and the methods: check them, tap their stages, build trained parts and the loss."""

import torch
from torch import nn

from nnunetv2_kd.distillation.loss import DistillationLoss
from nnunetv2_kd.errors import KDError
from nnunetv2_kd.methods import Method, Methods, OnStages, stages_of
from nnunetv2_kd.networks.build import plain_network
from nnunetv2_kd.networks.stages import resolve_stages, stage_channels, stage_modules
from nnunetv2_kd.networks.taps import Taps
from nnunetv2_kd.regions import Labels
from nnunetv2_kd.teachers.teacher import Teacher


class Distillation:
    """A student, its teacher, and the methods by which it is taught.

    Args:
        student: the network to train; it may be compiled or wrapped in DDP.
        teacher: any kind of teacher.
        terms: the methods by name; those of weight 0 are left out.
        labels: how to read the targets.
        segmentation: the loss on the labels alone, called with the student's output and the target.
        balance_gradients: see `DistillationLoss`.

    Attributes:
        loss: takes the place of ``segmentation``.
        trained_parts: modules that the methods train with the student; give their parameters to the optimizer.
        terms: the methods, their stages spelt as in the student's `stage_modules`.

    Raises:
        KDError: if a method does not fit the student or the teacher.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: Teacher,
        terms: Methods,
        labels: Labels,
        segmentation: nn.Module,
        balance_gradients: bool = False,
    ) -> None:
        plain = plain_network(student)
        self.teacher = teacher
        self.terms = with_resolved_stages({n: m for n, m in terms.items() if m.weight > 0}, plain)
        stages = teacher.attach(plain, self.terms)
        self.trained_parts = build_trained_parts(self.terms, plain, teacher.stage_channels())
        self.loss = DistillationLoss(
            segmentation,
            self.terms,
            labels,
            Taps(plain, {stage: stage for stage in stages}),
            self.trained_parts,
            [parameter for parameter in plain.parameters() if parameter.requires_grad],
            balance_gradients,
        )

    def check_batch(self, batch_size: int) -> list[str]:
        """Whether the methods can be computed on batches of this size; see `Method.check_batch`."""
        return [line for method in self.terms.values() for line in method.check_batch(batch_size)]

    def compile(self) -> None:
        """Compile the teacher and the methods, for use with a compiled student."""
        # a compiled student's backward pass may free its buffers, which measuring gradients needs a second time
        if hasattr(torch._functorch.config, "donated_buffer"):  # since torch 2.6
            torch._functorch.config.donated_buffer = False
        self.teacher.compile()
        self.loss.compile_terms()


def with_resolved_stages(methods: Methods, student: nn.Module) -> Methods:
    """The methods with names such as ``encoder.-1`` replaced by those in the student's `stage_modules`.

    Raises:
        KDError: if the student lacks a stage, or a method names one twice: counted from the top and from the bottom.
    """
    resolved = dict(methods)
    for name, method in methods.items():
        named = stages_of(method)
        if named:
            available = stage_modules(student)
            stages = tuple(found for stage in named for found in resolve_stages(stage, available))
            if len(set(stages)) != len(stages):
                raise KDError(f"terms.{name} names a stage twice: {', '.join(named)} mean {', '.join(stages)}.")
            resolved[name] = method.model_copy(update={"stages": stages})
    return resolved


def build_trained_parts(methods: Methods, student: nn.Module, channels_t: dict[str, int]) -> nn.ModuleDict:
    """The modules that the methods train, freshly initialised, on the student's device.

    Args:
        methods: with resolved stages.
        student: the network.
        channels_t: channels of the teacher's stages, by the student's stage names.
    """
    parts = {method.name: _trained_part(method, student, channels_t) for method in methods.values()}
    return nn.ModuleDict({name: part for name, part in parts.items() if part is not None}).to(
        next(student.parameters()).device
    )


def _trained_part(method: Method, student: nn.Module, channels_t: dict[str, int]) -> nn.Module | None:
    if not isinstance(method, OnStages):
        return method.trained_part({}, {}, spatial_dims(student))
    channels_s = stage_channels(student)
    return method.trained_part(
        {stage: channels_s[stage] for stage in method.stages},
        {stage: channels_t[stage] for stage in method.stages if stage in channels_t},
        spatial_dims(student),
    )


def spatial_dims(network: nn.Module) -> int:
    """2 or 3, read from the network's first convolution."""
    convolution = next(m for m in network.modules() if isinstance(m, (nn.Conv2d, nn.Conv3d)))
    return 3 if isinstance(convolution, nn.Conv3d) else 2
