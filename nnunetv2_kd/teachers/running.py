"""A teacher that runs during the training: one frozen network."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from nnunetv2_kd.methods import Methods, need_logits, tapped_stages
from nnunetv2_kd.networks.stages import match_stages, stage_channels
from nnunetv2_kd.networks.taps import Taps
from nnunetv2_kd.record import TeacherRecord
from nnunetv2_kd.regions import Labels
from nnunetv2_kd.teachers.pseudo_dice import describe_dice, pseudo_dice
from nnunetv2_kd.teachers.teacher import Batch, Teacher, TeacherOutput


class _DecoderSkipped(Exception):  # noqa: N818  (not an error)
    """Ends a forward pass before the decoder."""


class RunningTeacher(Teacher):
    """A frozen network that gives logits and the features of attached stages.

    Args:
        network: of any kind for methods on logits, a U-Net for those on stages.
        record: who it is.
        trained_heads: which of its segmentation heads, finest first, have learned anything.
        device: to run on; None: where the network is.
        labels: how to read targets, to `assess` it; None: it is not assessed.
    """

    def __init__(
        self,
        network: nn.Module,
        record: TeacherRecord,
        trained_heads: list[bool],
        device: torch.device | None = None,
        labels: Labels | None = None,
    ) -> None:
        self.network = network.requires_grad_(False).eval()
        if device is not None:
            self.network.to(device)
        self.record = record
        self.trained_heads = trained_heads
        self.labels = labels
        self.taps: Taps | None = None
        self._stages: dict[str, str] = {}
        self._needs_logits = True
        self._encoder_only = self._skips_decoder = False

    def __repr__(self) -> str:
        return f"RunningTeacher({self.record})"

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    def attach(self, student: nn.Module, methods: Methods) -> list[str]:
        self._needs_logits = need_logits(methods)
        stages = tapped_stages(methods)
        self.tap(match_stages(stages, student, self.network) if stages else {})
        return list(self._stages)

    def tap(self, stages: Mapping[str, str]) -> None:
        """Keep the features of these stages from now on, each under the name of the student's stage that it teaches."""
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
        """In place, so that weights keep their names."""
        # every network takes an entry of the few that torch keeps per function, and all share theirs
        torch._dynamo.config.cache_size_limit += 1
        # a compiled decoder would have to raise its way out
        only_encoder = self._encoder_only and not self._needs_logits
        (self.network.get_submodule("encoder") if only_encoder else self.network).compile()

    def __call__(self, batch: Batch) -> TeacherOutput:
        batch["data"] = batch["data"].to(self.device, non_blocking=True)
        return self.run(batch["data"], self._needs_logits)

    @torch.no_grad()  # not inference_mode: autograd refuses to save inference tensors for the student's backward pass
    def run(self, data: Tensor, logits: bool = True) -> TeacherOutput:
        """Logits of every trained head, finest first, and features of the tapped stages; on CUDA under autocast, as the
        student runs.

        Args:
            data: ``(B, C, *S)`` on the teacher's device.
            logits: without them, and where all tapped stages are the encoder's, the decoder does not run.
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
        # without deep supervision the network returns its finest head only, whatever heads it has
        found = [head for head, trained in zip(heads, self.trained_heads, strict=False) if trained]
        return TeacherOutput(found, self.taps.take() if self.taps is not None else {})

    def _before_decoder(self, *_: Any) -> None:
        if self._skips_decoder:
            raise _DecoderSkipped

    def records(self) -> list[TeacherRecord]:
        return [self.record]

    def describe(self) -> list[str]:
        return [f"Teacher: {self.record}, {sum(self.trained_heads)} trained heads"]

    def assess(self, batches: Callable[[], Iterable[Batch]], name: str = "teacher") -> list[str]:
        if self.labels is None:
            return []
        pairs = []
        for batch in batches():
            target = batch["target"][0] if isinstance(batch["target"], list) else batch["target"]
            pairs.append((self.run(batch["data"].to(self.device)).logits[0], target.to(self.device)))
        return describe_dice(
            f"{name.capitalize()}'s pseudo Dice on {len(pairs)} validation batches", pseudo_dice(pairs, self.labels)
        )
