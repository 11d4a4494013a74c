"""Pictures of a student's worst cases for the page: image, ground truth, teacher and student side by side."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from nnunetv2.evaluation.evaluate_predictions import region_or_label_to_mask

from nnunetv2_kd.leaderboard.board import Board, Entry
from nnunetv2_kd.leaderboard.origin import DISTILLED, TEACHER
from nnunetv2_kd.leaderboard.scores import structures_of
from nnunetv2_kd.nnunet.images import reader_of

COLOURS = ("#D55E00", "#56B4E9", "#F0E442", "#009E73", "#CC79A7", "#0072B2", "#E69F00")
NAMES = ("orange", "light blue", "yellow", "green", "pink", "dark blue", "amber")


@dataclass(frozen=True)
class Picture:
    """`png`: base64. `description`: what the picture shows, for readers who cannot see it."""

    case: str
    png: str
    description: str


def featured_model(board: Board) -> Entry | None:
    """The model whose worst cases are shown: the best distilled student, or else the best model that is
    not a teacher."""
    ranked = [entry for entry in board.ranked if entry.kind == DISTILLED]
    ranked += [entry for entry in board.ranked if entry.kind != TEACHER] + board.ranked
    return ranked[0] if ranked else None


def worst_cases(board: Board, entry: Entry, count: int = 3) -> tuple[list[Picture], str]:
    """Pictures of the cases with the lowest mean Dice.

    Returns:
        The pictures, and why some are missing.
    """
    scores = board.case_means.loc[entry.name].dropna().sort_values(kind="stable")
    by_name = {other.name: other for other in board.entries}
    shown = [by_name[name] for name in (entry.teacher, entry.alone) if name in by_name] + [entry]
    pictures = []
    for case in scores.index[:count]:
        files = [board.evaluation.predictions.get((other.name, case)) for other in shown]
        present = [(other, file) for other, file in zip(shown, files, strict=True) if file and file.is_file()]
        if not board.evaluation.images.get(case) or board.evaluation.truths is None:
            return [], "No pictures: the images (nnUNet_raw, imagesTr) or the ground truth are not on this machine."
        if entry not in [other for other, _ in present]:
            return [], f"No pictures: the predictions of {entry.short_name} are not on this machine."
        try:
            pictures.append(_picture(board, case, present))
        except Exception as error:  # a reader may raise anything on a broken file, which must not cost the page
            return pictures, f"{case}: no picture: {error}"
    return pictures, ""


def legend(board: Board) -> str:
    colours = [f"{name}: {NAMES[i % len(NAMES)]}" for i, name in enumerate(board.evaluation.structures)]
    return f"Outlines: {', '.join(colours)}."


def _picture(board: Board, case: str, predictions: Sequence[tuple[Entry, Path]]) -> Picture:
    model = predictions[-1][0].model
    reader, ending = reader_of(model.plans, model.dataset_json)(), model.dataset_json["file_ending"]
    image, properties = reader.read_images(board.evaluation.images[case])
    if board.evaluation.truths is None:
        raise ValueError("no ground truth")
    truth = reader.read_seg(str(board.evaluation.truths / f"{case}{ending}"))[0][0]
    segmentations = [reader.read_seg(str(file))[0][0] for _, file in predictions]
    wrong = (truth != segmentations[-1]).reshape(len(truth), -1).sum(axis=1)
    index = int(wrong.argmax())
    window = _window([truth[index], *(segmentation[index] for segmentation in segmentations)])
    spacing = [float(value) for value in properties["spacing"]]
    dice = [f"Dice {float(board.case_means.loc[entry.name, case]):.3f}" for entry, _ in predictions]
    titles = [f"{e.kind}\n{e.short_name}\n{d}" for (e, _), d in zip(predictions, dice, strict=True)]
    overlays = [None, truth[index], *(segmentation[index] for segmentation in segmentations)]
    structures = structures_of(model.plans, model.dataset_json)
    png = _draw(
        image[0][index][window],
        [o[window] if o is not None else None for o in overlays],
        ["image", "truth", *titles],
        list(structures.values()),
        spacing[1] / spacing[2],
    )
    models = ", ".join(f"{entry.short_name} with {d}" for (entry, _), d in zip(predictions, dice, strict=True))
    slice_ = f"slice {index + 1} of {len(truth)}, where {predictions[-1][0].short_name} is wrong in most voxels; "
    return Picture(case, png, f"Case {case}: {slice_ if len(truth) > 1 else ''}image, truth, {models}.")


def _window(masks: Sequence[np.ndarray]) -> tuple[slice, slice]:
    """Rows and columns around everything that is outlined, with a margin; the whole slice if nothing is."""
    where = np.argwhere(np.any([mask > 0 for mask in masks], axis=0))
    if not len(where):
        return slice(None), slice(None)
    low, high = where.min(axis=0), where.max(axis=0) + 1
    margin = np.maximum(6, (high - low) // 4)
    rows, columns = (slice(max(0, int(a)), int(b)) for a, b in zip(low - margin, high + margin, strict=True))
    return rows, columns


def _draw(
    image: np.ndarray,
    overlays: Sequence[np.ndarray | None],
    titles: Sequence[str],
    structures: Sequence[Any],
    aspect: float,
) -> str:
    height = 2.2 * image.shape[0] * aspect / image.shape[1]
    figure = Figure(figsize=(2.2 * len(overlays), min(max(height, 1.2), 4.4) + 0.7), layout="constrained")
    low, high = np.percentile(image, [0.5, 99.5])
    for axes, overlay, title in zip(figure.subplots(1, len(overlays)), overlays, titles, strict=True):
        axes.imshow(image, cmap="gray", vmin=low, vmax=high, aspect=aspect)
        for i, structure in enumerate(structures):
            mask = region_or_label_to_mask(overlay, structure) if overlay is not None else None
            if mask is not None and mask.any():
                # padded, so that outlines at the picture's edge are closed
                axes.contour(
                    np.arange(-1, mask.shape[1] + 1),
                    np.arange(-1, mask.shape[0] + 1),
                    np.pad(mask, 1),
                    levels=[0.5],
                    colors=COLOURS[i % len(COLOURS)],
                    linewidths=1.6,
                )
        axes.set(xticks=[], yticks=[], xlim=(-0.5, image.shape[1] - 0.5), ylim=(image.shape[0] - 0.5, -0.5))
        axes.set_title(title, fontsize=8, parse_math=False)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110)
    return base64.b64encode(stream.getvalue()).decode()
