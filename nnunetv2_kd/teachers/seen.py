"""Find which of a student's validation cases a teacher was trained on, from what its training left behind: its
validation folder, its log, and its dataset's folds if they are on this machine. The same fold number says nothing if
the dataset is another one, or if ``splits_final.json`` has changed since."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunetv2.paths import nnUNet_preprocessed

from nnunetv2_kd.nnunet.model_folder import ALL, Fold
from nnunetv2_kd.nnunet.splits import Split, read_splits
from nnunetv2_kd.nnunet.validation import read_validation


@dataclass(frozen=True)
class TrainingCases:
    """What is known about the cases of a trained fold.

    Attributes:
        dataset: full name of the dataset that it was trained on.
        fold: a number or ``all``.
        trained_on: names of the training cases; None: not known.
        held_out: names of the validation cases; empty: not known.
        inherited: for each of the model's own teachers, how many of the model's validation cases that teacher was
            trained on; None: not known.
    """

    dataset: str
    fold: str
    trained_on: frozenset[str] | None
    held_out: frozenset[str]
    inherited: tuple[int | None, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        trained_on = None if self.trained_on is None else sorted(self.trained_on)
        return {
            "dataset": self.dataset,
            "fold": self.fold,
            "trained_on": trained_on,
            "held_out": sorted(self.held_out),
            "inherited": list(self.inherited),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "TrainingCases":
        """The inverse of `as_dict`."""
        trained_on = values["trained_on"]
        known = None if trained_on is None else frozenset(trained_on)
        inherited = tuple(values["inherited"])
        return cls(values["dataset"], values["fold"], known, frozenset(values["held_out"]), inherited)

    def seen(self, dataset: str, validation: Sequence[str]) -> int | None:
        """How many of a student's validation cases the model was trained on, itself or through its own teachers; None:
        not known.

        Args:
            dataset: the student's.
            validation: names of its validation cases.
        """
        counts = [self._trained_on(dataset, set(validation)), *self.inherited]
        known = [count for count in counts if count is not None]
        return max(known) if len(known) == len(counts) else None

    def _trained_on(self, dataset: str, names: set[str]) -> int | None:
        if self.trained_on is not None:
            return len(names & self.trained_on)
        if self.fold == ALL and self.dataset == dataset:
            return len(names)
        # if some names match, both use the same cases, and those that were not held out were trained on
        return len(names - self.held_out) if self.held_out & names else None


def training_cases(
    fold_folder: Path, dataset: str, fold: Fold, ending: str, kd: Mapping[str, Any] | None
) -> TrainingCases:
    """Find the cases of a trained fold in the files that its training left.

    Args:
        fold_folder: of the model.
        dataset: full name of the dataset that it was trained on.
        fold: a number or ``all``.
        ending: of that dataset's files.
        kd: its record in its checkpoint; None if it is not a student.
    """
    inherited = tuple(teacher.get("seen_validation_cases") for teacher in (kd or {}).get("teachers", ()))
    splits = read_splits(Path(nnUNet_preprocessed) / dataset) if nnUNet_preprocessed.is_set() else []
    everything = frozenset(case for split in splits for cases in split.values() for case in cases)
    if str(fold) == ALL:
        return TrainingCases(dataset, ALL, everything or None, frozenset(), inherited)
    split = splits[int(fold)] if int(fold) < len(splits) else None
    validation = read_validation(fold_folder, ending, split["val"] if split is not None else ())
    trained_on = None
    if split is not None and _matches_split(split, validation.cases, validation.counts):
        trained_on = frozenset(split["train"])
    elif validation.cases and everything:
        trained_on = everything - validation.cases
    return TrainingCases(dataset, str(fold), trained_on, validation.cases, inherited)


def _matches_split(split: Split, held_out: frozenset[str], counts: tuple[int, int] | None) -> bool:
    """Whether a fold left traces of its cases, and they agree with the current split."""
    agrees = [held_out == set(split["val"])] if held_out else []
    if counts is not None:
        agrees.append(counts == (len(split["train"]), len(split["val"])))
    return bool(agrees) and all(agrees)
