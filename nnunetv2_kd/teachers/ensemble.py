"""Several teachers as one: limit-trained multi-teacher distillation, arXiv 2303.09494. How the teachers are combined is
not public; the three rules are ours."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from nnunetv2_kd.config import CombineOptions
from nnunetv2_kd.errors import KDError
from nnunetv2_kd.methods import Methods, methods_needing_features
from nnunetv2_kd.record import TeacherRecord
from nnunetv2_kd.regions import Labels, Regions, known_heads, region_graph
from nnunetv2_kd.teachers.combine import as_logits, mean_affinity, mix, mix_known, region_weights, voxel_weights
from nnunetv2_kd.teachers.running import RunningTeacher
from nnunetv2_kd.teachers.teacher import Batch, Teacher, TeacherOutput, methods_on_region_cosines

Size = tuple[int, ...]


class EnsembleTeacher(Teacher):
    """Runs the teachers one after the other, and mixes their probabilities and their cosines between regions.

    A teacher's features are reduced to cosines before the next one runs, so that only one set is in memory.

    Args:
        teachers: at least two.
        weights: one per teacher, at least 0, not all 0.
        options: the rule.
        labels: how to read the targets.

    """

    def __init__(
        self, teachers: Sequence[RunningTeacher], weights: Sequence[float], options: CombineOptions, labels: Labels
    ) -> None:
        self.teachers = list(teachers)
        self.base = torch.tensor(weights, dtype=torch.float32) / sum(weights)
        self.options = options
        self.labels = labels
        heads = [self._known_by(teacher) for teacher in self.teachers]
        self.known = known_heads(labels, sorted({head for own in heads for head in own}) if heads else None)
        self.is_partial = len({tuple(own) for own in heads}) > 1 or self.known is not None
        # each teacher's mean weight over the voxels of the last batch, (M,), summing to 1
        self.mean_weights = self.base

    def attach(self, student: nn.Module, methods: Methods) -> list[str]:
        single = methods_needing_features(methods)
        if single:
            raise KDError(
                f"{', '.join(single)} compares features, which cannot be mixed over several teachers. With several "
                f"teachers use terms on logits, {methods_on_region_cosines()}; or name a single teacher."
            )
        if self.is_partial and self.options.rule != "mean":
            raise KDError(
                f"If a teacher does not know all labels, only the rule mean can combine teachers, found "
                f"{self.options.rule}: it cannot rate a teacher at voxels of labels that it does not know. Remove "
                "combine.rule."
            )
        if self.is_partial and not all(weight > 0 for weight in self.base):
            raise KDError("If a teacher does not know all labels, every teacher's weight must be above 0.")
        stages: list[str] = []
        for teacher in self.teachers:
            stages = teacher.attach(student, methods)
        return stages

    def compile(self) -> None:
        for teacher in self.teachers:
            teacher.compile()

    def records(self) -> list[TeacherRecord]:
        return [record for teacher in self.teachers for record in teacher.records()]

    def describe(self) -> list[str]:
        lines = [line for teacher in self.teachers for line in teacher.describe()]
        if self.options.rule != "mean" and self.labels.ignore_label is not None:
            lines.append(
                f"At voxels with the ignore label, the rule '{self.options.rule}' falls back to the teachers' mean, "
                "because no label says which teacher is right."
            )
        return lines

    def assess(self, batches: Callable[[], Iterable[Batch]]) -> list[str]:
        lines = [
            line
            for number, teacher in enumerate(self.teachers, start=1)
            for line in teacher.assess(batches, f"teacher {number}")
        ]
        self.dice = max((teacher.dice for teacher in self.teachers if teacher.dice is not None), default=None)
        return lines

    def end_epoch(self, epoch: int) -> list[str]:
        return [line for teacher in self.teachers for line in teacher.end_epoch(epoch)]

    def shares(self) -> Mapping[str, Tensor]:
        return {f"weight_of_teacher_{number}": share for number, share in enumerate(self.mean_weights, start=1)}

    def __call__(self, batch: Batch) -> TeacherOutput:
        device = self.teachers[0].device
        batch["data"] = batch["data"].to(device, non_blocking=True)
        target = batch["target"]
        batch["target"] = (
            [y.to(device, non_blocking=True) for y in target]
            if isinstance(target, list)
            else target.to(device, non_blocking=True)
        )
        return self.run(batch["data"], batch["target"])

    @torch.no_grad()
    def run(self, data: Tensor, targets: Tensor | list[Tensor]) -> TeacherOutput:
        """The combined output: logits whose softmax (or sigmoid) is the mixture, and combined cosines by stage.

        Args:
            data: ``(B, C, *S)``.
            targets: nnU-Net's, one per head or a single one.
        """
        by_size = {
            tuple(y.shape[2:]): y if self.known is None else self.known.target(y)
            for y in (targets if isinstance(targets, (list, tuple)) else [targets])
        }
        labels = self.labels if self.known is None else self.known.merged_labels
        finest = labels.regions(next(iter(by_size.values())))
        probabilities: dict[Size, list[Tensor]] = defaultdict(list)
        edges: dict[str, list[Tensor]] = defaultdict(list)
        with torch.autocast(data.device.type, enabled=False):
            for teacher in self.teachers:
                heads, graphs = self._reduce(teacher.run(data), finest)
                for p in heads:
                    probabilities[tuple(p.shape[2:])].append(p)
                for stage, graph in graphs.items():
                    edges[stage].append(graph)
            if self.is_partial:
                return self._combine_partial(probabilities, edges, by_size)
            return self._combine(probabilities, edges, by_size)

    def _reduce(self, output: TeacherOutput, regions: Regions) -> tuple[list[Tensor], dict[str, Tensor]]:
        """A teacher's probabilities, and cosines in place of its features, which are then released."""
        edges = {stage: region_graph(features, regions)[0] for stage, features in output.features.items()}
        return [self._probabilities(z) for z in output.logits], edges

    def _combine(
        self, probabilities: dict[Size, list[Tensor]], edges: dict[str, list[Tensor]], targets: dict[Size, Tensor]
    ) -> TeacherOutput:
        logits, of_regions = [], None
        base = self.base.to(next(iter(targets.values())).device)
        for size, target in targets.items():
            if len(probabilities.get(size, [])) != len(self.teachers):
                continue  # a head that a teacher lacks or never trained
            membership = self.labels.regions(target).dense()
            weights = voxel_weights(
                self.options.rule,
                probabilities[size],
                membership,
                base,
                self.options.tau,
                self.labels.has_regions,
            )
            mixture = mix(probabilities[size], weights)
            logits.append(as_logits(mixture, self.labels.has_regions))
            if of_regions is None:
                of_regions = region_weights(weights, membership, base)
                self.mean_weights = weights.flatten(1).mean(dim=1)
        if of_regions is None:
            raise KDError(f"The teachers have no segmentation head of the same size: {sorted(probabilities)}.")
        nodes = of_regions.flatten(1).unsqueeze(1)  # (M, 1, B * K): the graph of a batch as one sample
        combined = {stage: mean_affinity([one.unsqueeze(0) for one in own], nodes)[0] for stage, own in edges.items()}
        return TeacherOutput(logits, {}, combined)

    def _combine_partial(
        self, probabilities: dict[Size, list[Tensor]], edges: dict[str, list[Tensor]], targets: dict[Size, Tensor]
    ) -> TeacherOutput:
        """Combine each structure from the teachers that know it, and each cosine from those that know both regions."""
        sigmoid = self.labels.has_regions
        heads = [self._known_by(teacher) for teacher in self.teachers]
        logits = []
        for size in targets:
            if len(probabilities.get(size, [])) != len(self.teachers):
                continue
            # without the background: each teacher's holds other structures
            own = [p if sigmoid else p[:, 1:] for p in probabilities[size]]
            mixture = mix_known(own, heads, self.base.tolist(), sigmoid)
            if not sigmoid:
                mixture = torch.cat((1 - mixture.sum(dim=1, keepdim=True), mixture), dim=1)
            logits.append(as_logits(mixture, sigmoid))
        if not logits:
            raise KDError(f"The teachers have no segmentation head of the same size: {sorted(probabilities)}.")
        combined = {stage: self._mean_of_known(own, heads) for stage, own in edges.items()}
        return TeacherOutput(logits, {}, combined, None if self.known is None else self.known.heads)

    def _mean_of_known(self, graphs: list[Tensor], heads: list[list[int]]) -> Tensor:
        everything = sorted({head for own in heads for head in own})
        total, sums = torch.zeros_like(graphs[0]), torch.zeros_like(graphs[0])
        for weight, own, graph in zip(self.base.tolist(), heads, graphs, strict=True):
            # every teacher knows the background
            knows = torch.tensor([True, *(head in own for head in everything)], device=graph.device).float()
            nodes = knows.repeat(len(graph) // len(knows))
            total += weight * nodes.outer(nodes)
            sums += weight * nodes.outer(nodes) * graph
        return sums / total

    def _known_by(self, teacher: RunningTeacher) -> list[int]:
        if teacher.label_map is not None:
            return list(teacher.label_map.known_heads)
        return list(range(not self.labels.has_regions, self.labels.num_heads))

    def _probabilities(self, logits: Tensor) -> Tensor:
        return logits.float().sigmoid() if self.labels.has_regions else logits.float().softmax(dim=1)


def check_different(teachers: Sequence[RunningTeacher]) -> None:
    """Check that no teacher is named twice.

    Raises:
        KDError: names a teacher that is.
    """
    seen: dict[str, TeacherRecord] = {}
    for record in (record for teacher in teachers for record in teacher.records()):
        before = seen.setdefault(record.sha256, record)
        if before is not record:
            raise KDError(
                f"The same teacher is named twice under 'teachers': {before.folder}, fold {before.fold}, "
                f"and {record.folder}, fold {record.fold} (SHA-256 {record.sha256}). "
                "To let it count more, name it once and give it a larger weight."
            )
