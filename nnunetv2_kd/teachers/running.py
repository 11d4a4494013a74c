"""A teacher that runs during training: one frozen network."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from nnunetv2_kd.errors import KDError
from nnunetv2_kd.methods import Methods, any_needs_logits, tapped_stages
from nnunetv2_kd.networks.stages import match_stages, stage_channels
from nnunetv2_kd.networks.taps import Taps
from nnunetv2_kd.record import TeacherRecord
from nnunetv2_kd.regions import Labels, known_heads
from nnunetv2_kd.teachers.label_map import LabelMap
from nnunetv2_kd.teachers.pseudo_dice import describe_dice, mean_of_present, pseudo_dice
from nnunetv2_kd.teachers.teacher import Batch, Teacher, TeacherOutput


class _DecoderSkipped(Exception):  # noqa: N818  (not an error)
    """Ends a forward pass before the decoder."""


class RunningTeacher(Teacher):
    """A frozen network that returns logits and the features of attached stages.

    Args:
        network: any network for methods on logits, a U-Net for methods on stages.
        record: where the network comes from; None if that is not recorded.
        trained_heads: which of its segmentation heads, finest first, were trained; None: all.
        device: to run on; None: where the network is.
        labels: how to read targets, needed to `assess` the teacher; None: it is not assessed.
        notes: further lines to describe it.
        label_map: from its labels to the student's; None if they are the same.
    """

    def __init__(
        self,
        network: nn.Module,
        record: TeacherRecord | None = None,
        trained_heads: list[bool] | None = None,
        device: torch.device | None = None,
        labels: Labels | None = None,
        notes: Sequence[str] = (),
        label_map: LabelMap | None = None,
    ) -> None:
        self.network = network.requires_grad_(False).eval()
        if device is not None:
            self.network.to(device)
        self.record = record
        self.trained_heads = trained_heads
        self.labels = labels
        self.notes = list(notes)
        self.label_map = label_map
        self.taps: Taps | None = None
        self._stages: dict[str, str] = {}
        self._needs_logits = True
        self._encoder_only = self._skips_decoder = False
        self._version = self._weights_version()

    def __repr__(self) -> str:
        return f"RunningTeacher({self.record})"

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    def attach(self, student: nn.Module, methods: Methods) -> list[str]:
        self._needs_logits = any_needs_logits(methods)
        stages = tapped_stages(methods)
        self.tap(match_stages(stages, student, self.network) if stages else {})
        return list(self._stages)

    def tap(self, stages: Mapping[str, str]) -> None:
        """Keep the features of these stages from now on. The keys are the student's stages that they teach."""
        self._stages = dict(stages)
        self.taps = Taps(self.network, stages)
        self.taps.recording = True
        self._encoder_only = bool(stages) and all(stage.startswith("encoder.") for stage in stages.values())
        if self._encoder_only:
            self.network.get_submodule("decoder").register_forward_pre_hook(self._before_decoder)

    def stage_channels(self) -> dict[str, int]:
        if not self._stages:
            return {}
        channels = stage_channels(self.network)
        return {mine: channels[own] for mine, own in self._stages.items()}

    def compile(self) -> None:
        """Compile in place, so that weights keep their names."""
        # torch keeps only a few compiled versions per function, and all networks of one class share them
        torch._dynamo.config.cache_size_limit += 1
        # skipping the decoder raises an exception, which must not happen inside compiled code
        only_encoder = self._encoder_only and not self._needs_logits
        (self.network.get_submodule("encoder") if only_encoder else self.network).compile()

    def __call__(self, batch: Batch) -> TeacherOutput:
        batch["data"] = batch["data"].to(self.device, non_blocking=True)
        return self.run(batch["data"], self._needs_logits)

    @torch.no_grad()  # not inference_mode: autograd refuses to save inference tensors for the student's backward pass
    def run(self, data: Tensor, logits: bool = True) -> TeacherOutput:
        """Logits of every trained head, finest first, and features of the tapped stages; on CUDA under autocast, like
        the student.

        Args:
            data: ``(B, C, *S)`` on the teacher's device.
            logits: whether they are needed; if not, and all tapped stages are in the encoder, the decoder does not run.
        """
        self.network.eval()
        self._skips_decoder = self._encoder_only and not logits
        try:
            with torch.autocast("cuda") if data.device.type == "cuda" else nullcontext():
                output = self.network(data)
        except _DecoderSkipped:
            output = []
        finally:
            self._skips_decoder = False
        heads = list(output) if isinstance(output, (list, tuple)) else [output]
        # without deep supervision, the network returns its finest head only, however many it has
        taught = self.trained_heads or [True] * len(heads)
        found = [head for head, trained in zip(heads, taught, strict=False) if trained]
        known = None
        if self.label_map is not None:
            found, known = [self.label_map.logits(head) for head in found], self.label_map.known_heads
        return TeacherOutput(found, self.taps.take() if self.taps is not None else {}, known=known)

    def _before_decoder(self, *_: Any) -> None:
        if self._skips_decoder:
            raise _DecoderSkipped

    def records(self) -> list[TeacherRecord]:
        return [] if self.record is None else [self.record]

    def describe(self) -> list[str]:
        heads = "all" if self.trained_heads is None else sum(self.trained_heads)
        lines = [f"Teacher: {self.record}, {heads} trained heads", *self.notes]
        return lines if self.label_map is None else [*lines, f"  It teaches {self.label_map.described}."]

    def end_epoch(self, epoch: int) -> list[str]:
        """Check that the teacher stayed frozen; no lines for the log.

        Raises:
            KDError: if anything has changed the teacher's weights.
        """
        if self._weights_version() != self._version:
            raise KDError(
                f"The teacher's weights changed during epoch {epoch}, although it is frozen: a method or a trainer "
                "of your own writes to them."
            )
        return []

    def _weights_version(self) -> int:
        """A number that grows with every in-place change of a weight, which torch counts."""
        return sum(parameter._version for parameter in self.network.parameters())

    def assess(self, batches: Callable[[], Iterable[Batch]], name: str = "teacher") -> list[str]:
        if self.labels is None:
            return []
        given = list(batches())
        known = None if self.label_map is None else known_heads(self.labels, self.label_map.known_heads)
        pairs = (self._finest(batch) for batch in given)
        dice = (
            pseudo_dice(pairs, self.labels)
            if known is None
            else pseudo_dice(((z, known.target(y)) for z, y in pairs), known.merged_labels)
        )
        if known is None:
            self.dice = mean_of_present(dice)
        return describe_dice(f"{name.capitalize()}'s pseudo Dice on {len(given)} validation batches", dice)

    def _finest(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits and target at full resolution."""
        target = batch["target"][0] if isinstance(batch["target"], list) else batch["target"]
        return self.run(batch["data"].to(self.device)).logits[0], target.to(self.device)
