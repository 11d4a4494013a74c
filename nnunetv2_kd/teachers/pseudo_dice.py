"""Pseudo Dice of a network on patches, as nnU-Net shows it during training."""

from collections.abc import Iterable

import torch
from torch import Tensor

from nnunetv2_kd.regions import Labels


def pseudo_dice(answers: Iterable[tuple[Tensor, Tensor]], labels: Labels) -> list[float]:
    """Dice per class or region, counted over all patches together, background left out.

    Args:
        answers: pairs of logits ``(B, K, *S)`` and nnU-Net's target of the same size.
        labels: how to read the target. Ignored voxels do not count.

    Returns:
        One value in [0, 1] per foreground class or region; nan where neither prediction nor label has it.
    """
    tp = fp = fn = torch.zeros(())
    for logits, target in answers:
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
