"""How well two models agree on real cases, and how good each is."""

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from nnunetv2_kd.errors import KDError
from nnunetv2_kd.inference.device import prediction_threads, stopwatch
from nnunetv2_kd.inference.predictor import FastPredictor
from nnunetv2_kd.inference.preprocess import preprocess

NSD_TOLERANCE = 1.0  # mm


@dataclass(frozen=True)
class Case:
    """One case to predict.

    Attributes:
        files: its channel files.
        truth: file with the ground truth; None if there is none.
        previous: for a cascade, the file with the previous stage's segmentation.
    """

    files: list[str]
    truth: Path | None = None
    previous: str | None = None


@dataclass
class Agreement:
    """How two models' predictions of the same cases compare. The first model is the reference.

    Attributes:
        cases, voxels, foreground, differing: counts; foreground voxels are the reference's, and differing voxels are
            those that differ from it.
        between: Dice between both, per structure; mean over the cases in which either finds the structure.
        dice, nsd: against the ground truth, per structure, of the reference and of the other; empty without it.
        ms: median milliseconds per case, from preprocessing to segmentation, of the reference and of the other.
    """

    cases: int = 0
    voxels: int = 0
    foreground: int = 0
    differing: int = 0
    between: dict[str, float] = field(default_factory=dict)
    dice: tuple[dict[str, float], dict[str, float]] = field(default_factory=lambda: ({}, {}))
    nsd: tuple[dict[str, float], dict[str, float]] = field(default_factory=lambda: ({}, {}))
    ms: tuple[float, float] = (math.nan, math.nan)

    @property
    def per_100000(self) -> float:
        """Differing voxels per 100,000 foreground voxels."""
        return 1e5 * self.differing / max(1, self.foreground)

    @property
    def dice_lost(self) -> float:
        """The largest change of a structure's Dice against the ground truth; without ground truth, the largest value of
        1 minus the Dice between both."""
        first, second = self.dice
        changes = [abs(first[name] - second[name]) for name in first] or [1 - value for value in self.between.values()]
        return max((change for change in changes if not math.isnan(change)), default=0.0)


def structures_of(dataset_json: dict[str, Any]) -> dict[str, list[int]]:
    """The labels of each foreground structure."""
    found = {}
    for name, value in dataset_json["labels"].items():
        labels = [int(label) for label in np.atleast_1d(value)]
        if name != "ignore" and labels != [0]:
            found[name] = labels
    return found


def compare(
    reference: Callable[[Case], np.ndarray],
    other: Callable[[Case], np.ndarray],
    dataset_json: dict[str, Any],
    reader: type,
    cases: Sequence[Case],
    progress: Callable[..., Iterable] = iter,
) -> Agreement:
    """Predict cases with two models that see the same images.

    Args:
        reference, other: predict a case, ``(Z, Y, X)``, as `predict_case` does.
        dataset_json: of both.
        reader: nnU-Net's reader for the ground truth.
        cases: at least one.
        progress: wraps the cases, to show progress.

    Raises:
        KDError: if a case cannot be read; names it.
    """
    found = Agreement(cases=len(cases))
    structures = structures_of(dataset_json)
    read_seg = reader().read_seg
    between: dict[str, list[float]] = {name: [] for name in structures}
    dice, nsd = ([{name: list[float]() for name in structures} for _ in range(2)] for _ in range(2))
    took: list[list[float]] = [[], []]
    clock = stopwatch(prediction_threads())
    for case in progress(cases):
        segmentations = []
        for number, predict in enumerate((reference, other)):
            started = clock()
            segmentations.append(predict(case))
            took[number].append(1000 * (clock() - started))
        first, second = segmentations
        found.voxels += first.size
        found.foreground += int((first > 0).sum())
        found.differing += int((first != second).sum())
        truth, properties = read_seg(str(case.truth)) if case.truth is not None else (None, {})
        for name, labels in structures.items():
            masks = [np.isin(segmentation, labels) for segmentation in segmentations]
            between[name].append(_dice(*masks))
            if truth is not None:
                true = np.isin(truth[0], labels)
                for number, mask in enumerate(masks):
                    dice[number][name].append(_dice(true, mask))
                    nsd[number][name].append(_surface_dice(true, mask, properties["spacing"]))
    found.between = _means(between)
    if any(case.truth is not None for case in cases):
        found.dice = (_means(dice[0]), _means(dice[1]))
        found.nsd = (_means(nsd[0]), _means(nsd[1]))
    found.ms = (median(took[0]), median(took[1]))
    return found


def predict_case(predictor: FastPredictor, case: Case) -> np.ndarray:
    """The segmentation of a case by an initialized predictor.

    Raises:
        KDError: if it cannot be read; names it.
    """
    try:
        image, properties = preprocess(
            case.files,
            case.previous,
            predictor.plans_manager,
            predictor.configuration_manager,
            predictor.dataset_json,
        )
    except KDError as error:
        name = Path(case.files[0]).name
        raise KDError(str(error) if name in str(error) else f"{name}: {error}") from error
    except Exception as error:  # a reader may raise anything
        raise KDError(f"{Path(case.files[0]).name} cannot be read: {type(error).__name__}: {error}") from error
    logits = predictor.predict_logits_from_preprocessed_data(torch.from_numpy(image)).cpu()
    return predictor.segmentation_of(logits, properties)


def _dice(first: np.ndarray, second: np.ndarray) -> float:
    """nan if both are empty, as in nnU-Net."""
    size = int(first.sum()) + int(second.sum())
    return 2 * int((first & second).sum()) / size if size else math.nan


def _surface_dice(truth: np.ndarray, mask: np.ndarray, spacing: Sequence[float]) -> float:
    """Normalised surface Dice at `NSD_TOLERANCE` (Nikolov et al., JMIR 23, 2021), by MONAI; nan if both are empty."""
    if not (truth.any() and mask.any()):
        return 0.0 if truth.any() or mask.any() else math.nan
    if truth.shape[0] == 1:  # a 2d image
        truth, mask, spacing = truth[0], mask[0], list(spacing)[1:]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MONAI warns about its own deprecations
        from monai.metrics import compute_surface_dice  # seconds to import

        predicted, true = (torch.from_numpy(np.ascontiguousarray(part))[None, None] for part in (mask, truth))
        return float(
            compute_surface_dice(
                predicted,
                true,
                [NSD_TOLERANCE],
                include_background=True,
                spacing=[float(value) for value in spacing],
                use_subvoxels=True,
            )
        )


def _means(scores: dict[str, list[float]]) -> dict[str, float]:
    """The mean of every structure over the cases in which it is not nan."""
    present = {name: [value for value in values if not math.isnan(value)] for name, values in scores.items()}
    return {name: sum(values) / len(values) if values else math.nan for name, values in present.items()}
