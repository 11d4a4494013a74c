"""Load a teacher, freeze it, run it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from nnunetv2_kd.config import TeacherOptions
from nnunetv2_kd.errors import KDError, listing
from nnunetv2_kd.networks.build import build_network
from nnunetv2_kd.networks.cost import count_params
from nnunetv2_kd.networks.taps import Taps
from nnunetv2_kd.nnunet.checkpoint import read_checkpoint
from nnunetv2_kd.nnunet.files import read_json, sha256
from nnunetv2_kd.nnunet.model_folder import CheckpointPath
from nnunetv2_kd.teachers.check import check_same_task, seen_validation_cases
from nnunetv2_kd.teachers.find import StudentIdentity, find_teacher


@dataclass(frozen=True)
class TeacherRecord:
    """Who taught: plain values, for the log and the student's checkpoint.

    ``seen_validation_cases``: how many of the student's validation cases the teacher was trained on; None: not known.
    """

    folder: str
    fold: str
    checkpoint: str
    sha256: str
    trainer: str
    epoch: int
    params: int
    seen_validation_cases: int | None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class TeacherOutput:
    """What a teacher, or several combined, says about a batch.

    Attributes:
        logits: ``(B, K, *S)`` of every trained head, finest first; empty where nobody wants them and the teacher's
            decoder did not run.
        features: of the tapped stages, by the student's names of them; empty where several teachers are combined.
        edges: cosines between all regions of the batch ``(B*K, B*K)`` by stage, of several teachers combined.
    """

    logits: list[Tensor]
    features: dict[str, Tensor] = field(default_factory=dict)
    edges: dict[str, Tensor] = field(default_factory=dict)


class _Enough(Exception):  # noqa: N818  (not an error)
    """Ends a forward pass before the decoder."""


class Teacher:
    """A frozen network that answers with logits and tapped features. Not an nn.Module on purpose: nothing that walks
    over the trainer's modules can train it, wrap it or save it."""

    def __init__(self, network: nn.Module, record: TeacherRecord, trained_heads: list[bool]) -> None:
        self.network = network.requires_grad_(False).eval()
        self.record = record
        self.trained_heads = trained_heads
        self.taps: Taps | None = None
        self._encoder_only = self._skips_decoder = False

    def __repr__(self) -> str:
        return f"Teacher({self.record})"

    def tap(self, stages: Mapping[str, str]) -> None:
        """Keep the features of these stages from now on, each under the name of the student's stage that it teaches."""
        self.taps = Taps(self.network, stages)
        self.taps.recording = True
        self._encoder_only = bool(stages) and all(stage.startswith("encoder.") for stage in stages.values())
        if self._encoder_only:
            self.network.get_submodule("decoder").register_forward_pre_hook(self._before_decoder)

    def compile(self, logits: bool = True) -> None:
        """Let torch compile what runs at every step; after `tap`, in place, so that weights keep their names.

        Args:
            logits: whether it is going to be called with them.
        """
        # every network takes an entry of the few that torch keeps per function, and all share theirs
        torch._dynamo.config.cache_size_limit += 1
        # a compiled decoder would have to raise its way out
        (self.network.get_submodule("encoder") if self._encoder_only and not logits else self.network).compile()

    def _before_decoder(self, *_: Any) -> None:
        if self._skips_decoder:
            raise _Enough

    @torch.no_grad()  # not inference_mode: autograd refuses to save inference tensors for the student's backward pass
    def __call__(self, data: Tensor, logits: bool = True) -> TeacherOutput:
        """Logits of every trained head, finest first, and features by the names given to `tap`.

        Args:
            data: ``(B, C, *S)``.
            logits: without them, and where all tapped stages are the encoder's, the decoder does not run.
        """
        self.network.eval()
        self._skips_decoder = self._encoder_only and not logits
        try:
            output = self.network(data)
        except _Enough:
            output = []
        finally:
            self._skips_decoder = False
        heads = list(output) if isinstance(output, (list, tuple)) else [output]
        # without deep supervision the network answers with its finest head only, whatever heads it has
        found = [head for head, trained in zip(heads, self.trained_heads, strict=False) if trained]
        return TeacherOutput(found, self.taps.take() if self.taps is not None else {})


def load_teacher(
    options: TeacherOptions,
    student: StudentIdentity,
    student_plans: dict[str, Any],
    student_dataset_json: dict[str, Any],
    splits: list[dict[str, list[str]]],
    validation: list[str],
    deep_supervision: bool,
) -> Teacher:
    """Find, check and load the teacher, on the CPU.

    Args:
        options: which teacher.
        student: for which student.
        student_plans, student_dataset_json: what the teacher is compared with.
        splits, validation: ``splits_final.json`` and the student's validation cases, to tell whether the teacher has
            seen some.
        deep_supervision: whether the student is trained with it; the teacher's heads are built accordingly.

    Raises:
        KDError: where there is no such teacher, it does not fit the student, or its weights do not fit its plans.
    """
    path = find_teacher(options, student)
    plans, dataset_json = read_json(path.folder / "plans.json"), read_json(path.folder / "dataset.json")
    checkpoint = read_checkpoint(path.checkpoint, options.trust_pickle)
    configuration = checkpoint["init_args"]["configuration"]
    check_same_task((plans, dataset_json), (student_plans, student_dataset_json), configuration, student.configuration)
    network = build_network(plans, configuration, dataset_json, checkpoint["trainer_name"], deep_supervision)
    load_strictly(network, checkpoint["network_weights"], path)
    record = TeacherRecord(
        folder=str(path.folder),
        fold=str(path.fold),
        checkpoint=path.checkpoint_name,
        sha256=sha256(path.checkpoint),
        trainer=str(checkpoint["trainer_name"]),
        epoch=int(checkpoint["current_epoch"]),
        params=count_params(network),
        seen_validation_cases=seen_validation_cases(splits, path.fold, student.fold, validation),
    )
    return Teacher(network, record, trained_heads(network, checkpoint.get("optimizer_state")))


def load_strictly(network: nn.Module, weights: dict[str, Tensor], path: CheckpointPath) -> None:
    """Load weights where every name and shape fits.

    Raises:
        KDError: names what differs.
    """
    weights = {key.removeprefix("module.").removeprefix("_orig_mod."): value for key, value in weights.items()}
    expected = network.state_dict()
    problems = [f"{key}: missing in the checkpoint" for key in expected if key not in weights]
    problems += [f"{key}: in the checkpoint only" for key in weights if key not in expected]
    problems += [
        f"{key}: {tuple(weights[key].shape)} in the checkpoint, {tuple(expected[key].shape)} in the network"
        for key in expected
        if key in weights and weights[key].shape != expected[key].shape
    ]
    if problems:
        shown = problems[:5] + ([f"and {len(problems) - 5} more"] if len(problems) > 5 else [])
        raise KDError(listing(f"The weights in {path.checkpoint} do not fit the network of its plans.json:", shown))
    network.load_state_dict(weights)


def trained_heads(network: nn.Module, optimizer_state: dict[str, Any] | None) -> list[bool]:
    """Which segmentation heads, finest first, ever received a gradient.

    nnU-Net builds all heads always, also where a trainer switches deep supervision off. An optimizer keeps a state for
    a parameter only once it had a gradient, so a head without one still has its random weights and teaches nothing.
    The finest head counts as trained; so do all where the checkpoint holds no optimizer.
    """
    heads = list(getattr(getattr(network, "decoder", None), "seg_layers", []))[::-1]
    if not heads:
        return [True]
    states = (optimizer_state or {}).get("state")
    if not states:
        return [True] * len(heads)
    index_of = {id(parameter): index for index, parameter in enumerate(network.parameters())}
    return [True] + [index_of[id(head.weight)] in states for head in heads[1:]]
