"""Match a teacher's labels to a student's by the names in both dataset.json."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from nnunetv2_kd.errors import KDError
from nnunetv2_kd.teachers.combine import as_logits

IGNORE = "ignore"  # nnU-Net's name for the label that is not a structure
Named = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Structures:
    """What a network segments: its foreground classes or its regions, in the order of its heads.

    Attributes:
        values: name to the labels of its voxels.
        uses_sigmoid: whether they are overlapping regions.
    """

    values: dict[str, frozenset[int]]
    uses_sigmoid: bool

    @property
    def names(self) -> list[str]:
        return list(self.values)

    def head(self, name: str) -> int:
        """Number of the segmentation head; the background's comes first if there is one."""
        return self.names.index(name) + (not self.uses_sigmoid)


def structures_of(dataset_json: Mapping[str, Any]) -> Structures:
    """The structures of a dataset.json.

    >>> structures_of({"labels": {"background": 0, "left": 1, "right": 2, "ignore": 3}}).names
    ['left', 'right']
    """
    labels = {name: value for name, value in dataset_json["labels"].items() if name != IGNORE}
    values = {
        name: frozenset(int(v) for v in (value if isinstance(value, (list, tuple)) else [value]))
        for name, value in labels.items()
    }
    foreground = {name: value for name, value in values.items() if value != {0}}
    sigmoid = any(len(value) > 1 for value in foreground.values())  # nnU-Net's own rule
    if not sigmoid:
        foreground = dict(sorted(foreground.items(), key=lambda item: min(item[1])))
    return Structures(foreground, sigmoid)


@dataclass(frozen=True)
class LabelMap:
    """Maps a teacher's heads to a student's.

    Attributes:
        sources: for every structure of the student, the teacher's heads that make it up; empty if the teacher does not
            know it.
        teacher_uses_sigmoid: whether the teacher's heads are overlapping regions.
        student_uses_sigmoid: whether the student's are.
        is_one_to_one: whether the heads correspond one to one, in the same order, with none left over.
        left_out: numbers of the student's structures that the user leaves to the student's own labels.
        described: the map in words.
    """

    sources: tuple[tuple[int, ...], ...]
    teacher_uses_sigmoid: bool
    student_uses_sigmoid: bool
    is_one_to_one: bool
    left_out: frozenset[int] = frozenset()
    described: str = ""

    @property
    def known(self) -> tuple[int, ...]:
        """Numbers of the student's structures that the teacher knows."""
        return tuple(number for number, heads in enumerate(self.sources) if heads)

    @property
    def known_heads(self) -> tuple[int, ...]:
        """Numbers of the student's heads that the teacher knows, without the background's."""
        return tuple(number + (not self.student_uses_sigmoid) for number in self.known)

    def probabilities(self, logits: Tensor, dim: int) -> Tensor:
        """Probabilities of the known structures: sums over the teacher's heads that make them up.

        Args:
            logits: with the teacher's heads along ``dim``.

        Returns:
            float32 in [0, 1], with the known structures along ``dim``.
        """
        return self.sums(
            logits.float().sigmoid() if self.teacher_uses_sigmoid else logits.float().softmax(dim=dim), dim
        )

    def sums(self, probabilities: Tensor, dim: int) -> Tensor:
        """Add up the probabilities of the teacher's heads to those of the known structures; both along ``dim``."""
        known = [torch.tensor(heads, device=probabilities.device) for heads in self.sources if heads]
        return torch.stack([probabilities.index_select(dim, heads).sum(dim=dim) for heads in known], dim=dim).clamp(
            max=1
        )

    def logits(self, logits: Tensor) -> Tensor:
        """Turn a teacher's logits ``(B, K_t, *S)`` into a student's over the ``H`` known structures: ``(B, 1 + H, *S)``
        with "anything else" first, or ``(B, H, *S)`` if the student's regions overlap."""
        if self.is_one_to_one:
            return logits
        p = self.probabilities(logits, dim=1)
        if not self.student_uses_sigmoid:
            p = torch.cat(((1 - p.sum(dim=1, keepdim=True)).clamp(min=0), p), dim=1)
        return as_logits(p, self.student_uses_sigmoid)


def map_labels(student: Structures, teacher: Structures, named: Named) -> LabelMap:
    """Match labels by the given names, and all others by equal names. A label without a match is not known.

    Args:
        named: the teacher's labels that make up each student's label; none if no teacher should teach it.

    >>> teacher = structures_of({"labels": {"background": 0, "left": 1, "right": 2}})
    >>> student = structures_of({"labels": {"background": 0, "kidney": 1, "liver": 2}})
    >>> found = map_labels(student, teacher, {"kidney": ["left", "right"]})
    >>> found.described, found.known, found.is_one_to_one
    ('left + right as kidney, not liver', (0,), False)
    """
    sources, words = [], []
    for name in student.names:
        wanted = list(named.get(name, [name]))
        is_known = bool(wanted) and all(label in teacher.values for label in wanted)
        sources.append(tuple(teacher.head(label) for label in wanted) if is_known else ())
        words.append(f"{' + '.join(wanted)} as {name}" if is_known else f"not {name}")
    heads = range(not student.uses_sigmoid, len(student.names) + (not student.uses_sigmoid))
    is_one_to_one = student.uses_sigmoid == teacher.uses_sigmoid and sources == [(head,) for head in heads]
    is_one_to_one = is_one_to_one and len(student.names) == len(teacher.names)
    left_out = frozenset(number for number, name in enumerate(student.names) if name in named and not named[name])
    return LabelMap(
        tuple(sources), teacher.uses_sigmoid, student.uses_sigmoid, is_one_to_one, left_out, ", ".join(words)
    )


def check_covered(student: Structures, maps: Sequence[LabelMap | None]) -> None:
    """Check that every structure is known to a teacher, or explicitly left to the student's own labels.

    Args:
        maps: of all teachers; None for a teacher with the student's labels.

    Raises:
        KDError: names the structures that are neither.
    """
    found = [label_map for label_map in maps if label_map is not None]
    if len(found) < len(maps):
        return
    covered = {number for label_map in found for number in {*label_map.known, *label_map.left_out}}
    missing = [name for number, name in enumerate(student.names) if number not in covered]
    if missing:
        raise KDError(
            f"No teacher knows {', '.join(missing)}. Under labels:, name the teacher's label, as in {missing[0]}: "
            f"THEIR_LABEL, or let the student learn it from its own labels alone: {missing[0]}: null"
        )


def map_problems(student: Structures, teachers: Sequence[tuple[str, Structures, Named]], mend: str) -> list[str]:
    """Everything that is wrong with the maps of a student's teachers.

    Args:
        teachers: each teacher's title, its structures, and the names given for it.
        mend: what the user can do about a structure that no teacher knows, with ``{name}`` in place of its name.
    """
    problems = []
    for title, teacher, named in teachers:
        problems += own_problems(student, title, teacher, named)
    names = sorted({name for _, _, named in teachers for names in named.values() for name in names})
    everywhere = {name for _, teacher, _ in teachers for name in teacher.values}
    where = "; ".join(f"{title}: {', '.join(teacher.names)}" for title, teacher, _ in teachers)
    for name in names:
        if name not in everywhere:
            problems.append(f"no teacher has a label {name!r} ({where})")
    for name in student.names:
        left_out = any(name in named and not named[name] for _, _, named in teachers)
        taught = any(map_labels(student, t, n).sources[student.names.index(name)] for _, t, n in teachers)
        if not taught and not left_out:
            problems.append(f"no teacher knows {name!r} ({where}). {mend.format(name=shlex.quote(name))}")
    return problems


def own_problems(student: Structures, title: str, teacher: Structures, named: Named) -> list[str]:
    """What is wrong with one teacher's map, regardless of the other teachers."""
    problems = [
        f"{title}: the student has no label {name!r}, only {', '.join(student.names)}"
        for name in named
        if name not in student.values
    ]
    used = [(name, label) for name in student.names for label in named.get(name, [name]) if label in teacher.values]
    for (name, label), (other_name, other) in combinations(used, 2):
        adds_up, excludes = name == other_name, not student.uses_sigmoid
        if label == other and adds_up:
            problems.append(f"{title}: {name!r} names {label!r} twice")
        elif label == other and excludes:
            problems.append(f"{title}: {label!r} is mapped twice, to {name!r} and to {other_name!r}")
        elif teacher.values[label] & teacher.values[other] and label != other and (adds_up or excludes):
            use = f"added up to {name!r}" if adds_up else f"{name!r} and {other_name!r}, which are exclusive"
            problems.append(f"{title}: the regions {label!r} and {other!r} overlap, so they cannot be {use}")
    if not map_labels(student, teacher, named).known:
        problems.append(f"{title}: it knows none of the student's labels ({', '.join(student.names)})")
    return problems


def label_words(maps: Sequence[Named]) -> list[str]:
    """The flag and its values for these maps; empty if there are none."""
    words = [
        f"{f'{number}:' if len(maps) > 1 else ''}{name}={','.join(labels)}"
        for number, named in enumerate(maps, 1)
        for name, labels in named.items()
    ]
    return ["--labels", *words] if words else []
