"""Pseudo Dice of a network on patches, as nnU-Net shows it during training, and a description for the log."""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from nnunetv2_kd.regions import Labels

POOR_DICE = 0.5


def pseudo_dice(pairs: Iterable[tuple[Tensor, Tensor]], labels: Labels) -> list[float]:
    """Dice per class or region, pooled over all patches, without the background.

    Args:
        pairs: ``(B, K, *S)`` and nnU-Net's target of the same size.
        labels: how to read the target. Ignored voxels do not count.

    Returns:
        One value in [0, 1] per foreground class or region; nan if neither prediction nor label contains it.
    """
    tp = fp = fn = torch.zeros(())
    for logits, target in pairs:
        truth = labels.regions(target).dense()[:, 1:].bool()
        if labels.has_regions:
            predicted = logits > 0
        else:
            predicted = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, logits.argmax(1, keepdim=True), True)[
                :, 1:
            ]
        valid = labels.valid(target)
        if valid is not None:
            predicted = predicted & valid
        dims = (0, *range(2, logits.ndim))
        tp = tp + (predicted & truth).sum(dims).cpu()
        fp = fp + (predicted & ~truth).sum(dims).cpu()
        fn = fn + (~predicted & truth).sum(dims).cpu()
    return (2 * tp / (2 * tp + fp + fn)).tolist()


def mean_of_present(dice: Sequence[float]) -> float:
    """The mean over the classes or regions that are present; nan if none is."""
    present = [d for d in dice if not math.isnan(d)]
    return sum(present) / len(present) if present else math.nan


def describe_dice(heading: str, dice: Sequence[float]) -> list[str]:
    """A teacher's Dice per class or region as a line for the log, and a warning if it is poor."""
    lines = [f"{heading}: {[round(d, 4) for d in dice]}"]
    mean = mean_of_present(dice)
    if mean < POOR_DICE:
        lines.append(
            f"WARNING: this is poor (mean {mean:.2f}); a student cannot learn much from such a teacher. Is it the "
            "right checkpoint, and was it trained on these labels?"
        )
    return lines
