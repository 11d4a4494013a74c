"""Scores per case and structure: nnU-Net's Dice, and the distances between surfaces that it does not measure.

Conventions if a structure is empty in the ground truth, in the prediction, or in both:

=============  ====================  =====  =====  ======
state          truth / prediction    Dice   NSD    HD95
=============  ====================  =====  =====  ======
`BOTH_EMPTY`   empty / empty         nan    nan    nan
`MISSED`       there / empty         0      0      nan
`FALSE_ALARM`  empty / there         0      0      nan
=============  ====================  =====  =====  ======

nan is counted and shown, but left out of the means.
"""

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.evaluation.evaluate_predictions import compute_metrics, load_summary_json, region_or_label_to_mask
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_kd.errors import KDError
from nnunetv2_kd.nnunet.images import reader_of
from nnunetv2_kd.nnunet.trained_models import TrainedFold, TrainedModel
from nnunetv2_kd.nnunet.validation import read_validation

SCORED, BOTH_EMPTY, MISSED, FALSE_ALARM, FAILED = "scored", "both empty", "missed", "false alarm", "failed"
NAN = float("nan")
Structure = int | tuple[int, ...]
ScoreRow = dict[str, Any]
SCORE_COLUMNS = ("model", "fold", "case", "structure", "state", "dice", "nsd", "hd95_mm", "note")


@dataclass(frozen=True)
class ScoringJob:
    """One case of one model to score; plain values only, for a worker process.

    Attributes:
        model, fold, case: names.
        truth, prediction: the files; None if there is none.
        structures: the label, or the labels of a region, by name.
        ignore_label: nnU-Net's.
        reader: nnU-Net's reader class.
        tolerance: of the normalised surface Dice, in mm.
        dice: Dice per structure from nnU-Net's summary.json, with ``n_ref`` and ``n_pred``; None: to be computed.
    """

    model: str
    fold: str
    case: str
    truth: Path | None
    prediction: Path
    structures: dict[str, Structure]
    ignore_label: int | None
    reader: type
    tolerance: float
    dice: dict[Structure, dict[str, float]] | None


def structures_of(plans: dict[str, Any], dataset_json: dict[str, Any]) -> dict[str, Structure]:
    """The foreground structures by name, each as nnU-Net evaluates it: a label, or the labels of a region."""
    manager = PlansManager(plans).get_label_manager(dataset_json)
    keys = manager.foreground_regions if manager.has_regions else manager.foreground_labels
    names: dict[Structure, str] = {}
    for name, value in dataset_json["labels"].items():
        key = _as_structure(value)
        names[key] = name
        if isinstance(key, tuple) and len(key) == 1:  # nnU-Net reads [1] as 1 if no region has several labels
            names.setdefault(key[0], name)
    return {names[_as_structure(key)]: _as_structure(key) for key in keys}


def validation_jobs(
    model: TrainedModel, truths: Path | None, splits: Sequence[dict[str, list[str]]], tolerance: float
) -> tuple[list[ScoringJob], list[ScoreRow], list[str]]:
    """What to score of a model's own validation output.

    Args:
        model: with validated folds.
        truths: folder of the ground truth; None: surfaces cannot be measured.
        splits: ``splits_final.json``, to find missing cases; empty: not known.
        tolerance: in mm.

    Returns:
        The jobs, a failed row per structure of each validation case that is not in summary.json, and one line per
        summary.json that cannot be used.
    """
    structures = structures_of(model.plans, model.dataset_json)
    ending, reader = model.dataset_json["file_ending"], reader_of(model.plans, model.dataset_json)
    ignore = PlansManager(model.plans).get_label_manager(model.dataset_json).ignore_label
    jobs, missing, problems = [], [], []
    for fold in model.validated_folds:
        try:
            entries = _entries(fold, ending, set(structures.values()))
        except KDError as error:
            problems.append(f"{model.name}, fold {fold.name}: {error}")
            continue
        expected = splits[int(fold.name)]["val"] if fold.name.isdigit() and int(fold.name) < len(splits) else []
        stale = read_validation(fold.folder, ending, expected).stale & entries.keys()
        if stale:
            problems.append(f"{model.name}, fold {fold.name}: {_left_out(stale)}")
            entries = {case: entry for case, entry in entries.items() if case not in stale}
        for case, entry in entries.items():
            truth = truths / f"{case}{ending}" if truths is not None else None
            prediction = fold.summary.parent / f"{case}{ending}"
            jobs.append(
                ScoringJob(
                    model.name,
                    fold.name,
                    case,
                    truth,
                    prediction,
                    structures,
                    ignore,
                    reader,
                    tolerance,
                    entry["metrics"],
                )
            )
        if expected and not set(entries) <= set(expected):
            problems.append(
                f"{model.name}, fold {fold.name}: splits_final.json has changed since the training; scored on the "
                "validation cases of that time"
            )
            continue
        for case in sorted(set(expected) - set(entries)):
            missing += failed_rows(model.name, fold.name, case, structures, "not in summary.json")
    return jobs, missing, problems


def _left_out(stale: Iterable[str]) -> str:
    names = sorted(stale)
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return (
        f"{shown} in its validation folder are from a training with other folds and may now be training cases: not "
        "counted"
    )


def failed_rows(model: str, fold: str, case: str, structures: Iterable[str], note: str) -> list[ScoreRow]:
    return [_row(model, fold, case, name, FAILED, NAN, NAN, NAN, note) for name in structures]


def score(job: ScoringJob) -> list[ScoreRow]:
    """One row per structure. A case that cannot be read or measured becomes failed rows with the reason."""
    if job.dice is not None and (job.truth is None or not job.truth.is_file() or not job.prediction.is_file()):
        missing = job.prediction if job.truth is not None and job.truth.is_file() else job.truth or "the ground truth"
        return [
            _from_summary(job, name, key, f"no surface distances: {missing} is missing")
            for name, key in job.structures.items()
        ]
    try:
        return _score(job)
    except Exception as error:  # a reader may raise anything on a broken file; it is shown, and the other cases go on
        if job.dice is not None:
            note = f"no surface distances: {error}"
            return [_from_summary(job, name, key, note) for name, key in job.structures.items()]
        return failed_rows(job.model, job.fold, job.case, job.structures, f"{type(error).__name__}: {error}")


def surface_scores(
    truth: np.ndarray, prediction: np.ndarray, spacing: Sequence[float], tolerance: float
) -> tuple[float, float]:
    """Normalised surface Dice and 95 % Hausdorff distance of two masks, neither of them empty; computed by MONAI.

    Args:
        truth, prediction: ``(*S)`` with two or three axes.
        spacing: mm per axis, in the same order.
        tolerance: in mm.

    Returns:
        NSD in [0, 1] (surface elements weighted by their area; Nikolov et al., JMIR 23, 2021) and HD95 in mm (the
        greater of the two directed 95th percentiles).
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MONAI warns about its own deprecations
        from monai.metrics import compute_hausdorff_distance, compute_surface_dice  # seconds to import

        predicted, true = (torch.from_numpy(np.ascontiguousarray(mask))[None, None] for mask in (prediction, truth))
        millimetres = [float(value) for value in spacing]
        nsd = compute_surface_dice(
            predicted, true, [tolerance], include_background=True, spacing=millimetres, use_subvoxels=True
        )
        hd95 = compute_hausdorff_distance(predicted, true, include_background=True, percentile=95, spacing=millimetres)
    return float(nsd), float(hd95)


def geometry_difference(first: Any, second: Any, properties: tuple[dict, dict]) -> str:
    """How two images differ in shape, spacing, origin or direction, in words; empty if they do not.

    Args:
        first, second: arrays as nnU-Net's readers return them.
        properties: as the readers return them.
    """
    if first.shape[1:] != second.shape[1:]:
        return f"{'×'.join(map(str, first.shape[1:]))} voxels against {'×'.join(map(str, second.shape[1:]))}"
    mine, other = (np.asarray(p["spacing"], dtype=float) for p in properties)
    if not np.allclose(mine, other, rtol=1e-3):
        return f"spacing {mine.round(4).tolist()} against {other.round(4).tolist()}"
    mine_itk, other_itk = (p.get("sitk_stuff", {}) for p in properties)
    for key, tolerance in (("origin", 0.1 * float(mine.min())), ("direction", 1e-2)):
        if key in mine_itk and key in other_itk and not np.allclose(mine_itk[key], other_itk[key], atol=tolerance):
            return f"{key} {np.round(mine_itk[key], 3).tolist()} against {np.round(other_itk[key], 3).tolist()}"
    return ""


def _score(job: ScoringJob) -> list[ScoreRow]:
    reader = job.reader()
    truth, truth_properties = reader.read_seg(str(job.truth))
    prediction, _ = reader.read_seg(str(job.prediction))
    if truth.shape != prediction.shape:
        raise ValueError(f"truth and prediction differ: {truth.shape[1:]} against {prediction.shape[1:]} voxels")
    keys = list(job.structures.values())
    computed = compute_metrics(str(job.truth), str(job.prediction), reader, keys, job.ignore_label)["metrics"]
    rows = []
    for name, key in job.structures.items():
        said = (job.dice or computed)[key]
        note = ""
        if job.dice is not None and not np.isclose(_number(said["Dice"]), computed[key]["Dice"], equal_nan=True):
            note = f"Dice is {said['Dice']:.4f} in summary.json, but {computed[key]['Dice']:.4f} from the files"
        row = _from_metrics(job, name, said, note)
        if row["state"] == SCORED:
            if job.ignore_label is not None and (truth == job.ignore_label).any():
                row["note"] = "no surface distances: the truth has ignored voxels, so its surface is not known"
            else:
                true, predicted = (region_or_label_to_mask(seg[0], key) for seg in (truth, prediction))
                row["nsd"], row["hd95_mm"] = surface_scores(*_squeeze(true, predicted, truth_properties), job.tolerance)
        rows.append(row)
    return rows


def _squeeze(truth: Any, prediction: Any, properties: dict[str, Any]) -> tuple[Any, Any, list[float]]:
    """Make a single slice a two-dimensional image, so that its two faces do not count as surface."""
    spacing = [float(value) for value in properties["spacing"]]
    if truth.shape[0] == 1:
        return truth[0], prediction[0], spacing[1:]
    return truth, prediction, spacing


def _from_summary(job: ScoringJob, name: str, key: Structure, note: str) -> ScoreRow:
    return _from_metrics(job, name, (job.dice or {})[key], note)


def _from_metrics(job: ScoringJob, name: str, metrics: dict[str, float], note: str) -> ScoreRow:
    dice = _number(metrics["Dice"])
    there = (metrics["n_ref"] > 0, metrics["n_pred"] > 0)
    state = {(True, True): SCORED, (False, False): BOTH_EMPTY, (True, False): MISSED, (False, True): FALSE_ALARM}[there]
    nsd = 0.0 if state in (MISSED, FALSE_ALARM) else NAN
    return _row(job.model, job.fold, job.case, name, state, dice, nsd, NAN, note)


def _row(
    model: str, fold: str, case: str, structure: str, state: str, dice: float, nsd: float, hd95: float, note: str
) -> ScoreRow:
    return dict(zip(SCORE_COLUMNS, (model, fold, case, structure, state, dice, nsd, hd95, note), strict=True))


def _entries(fold: TrainedFold, ending: str, keys: set[Structure]) -> dict[str, dict[str, Any]]:
    """Each case's entry in the fold's summary.json."""
    try:
        entries = load_summary_json(str(fold.summary))["metric_per_case"]
        named = {Path(entry["prediction_file"]).name.removesuffix(ending): entry for entry in entries}
        found = {key for entry in entries for key in entry["metrics"]}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise KDError(
            f"{fold.summary} cannot be read ({type(error).__name__}); repeat the training command with --val"
        ) from error
    if found != keys:
        raise KDError(
            f"{fold.summary} has other labels ({found}) than dataset.json ({keys}); repeat the training command with "
            "--val"
        )
    return named


def _number(value: float | None) -> float:
    return NAN if value is None else float(value)


def _as_structure(value: Any) -> Structure:
    return tuple(int(v) for v in value) if isinstance(value, (list, tuple)) else int(value)
