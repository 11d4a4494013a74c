"""Probabilities as bytes.

A byte holds ``round(255 * 2/pi * asin(sqrt(p)))``. Its steps are fine near 0 and 1, where a teacher's slight doubts are
(a linear byte rounds everything below 0.002 to 0), and coarser around 0.5. The error is at most `MAX_ERROR`.

Softmax heads are stored without the background, whose probability is 1 minus their sum. The 0 with which nnU-Net pads
an image then means background, in stored probabilities as in labels.
"""

import math

import numpy as np
import torch
from torch import Tensor

from nnunetv2_kd.errors import KDError

NOT_FINITE = (
    "the teacher's probabilities are not finite, because its weights or the image contain NaN or infinity. Check the "
    "raw image; if it is all right, use another checkpoint"
)
MAX_ERROR = math.pi / 4 / 255  # half of the widest step, at p = 0.5
TABLE = (np.sin(np.arange(256) * (math.pi / 510)) ** 2).astype(np.float32)
# replaces a stored 0, which only means "below the smallest step": an exact 0 would stay certain at any temperature
FLOOR = math.sin(math.pi / 510 / 4) ** 2


def encode(probabilities: np.ndarray) -> np.ndarray:
    """Probabilities in [0, 1] as bytes, of the same shape.

    Raises:
        KDError: if one is NaN, which would become the byte for "certainly background".
    """
    if not np.isfinite(probabilities).all():
        raise KDError(NOT_FINITE)
    root = np.sqrt(np.clip(probabilities, 0, 1, dtype=np.float32))
    return np.rint(np.arcsin(root) * np.float32(510 / math.pi)).astype(np.uint8)


def decode(codes: np.ndarray) -> np.ndarray:
    """float32 probabilities."""
    return TABLE[codes]


def stored_channels(logits: Tensor, sigmoid: bool) -> Tensor:
    """The probabilities to store, float32, from a teacher's logits ``(K, *S)``: ``(K, *S)`` for sigmoid heads,
    otherwise ``(K - 1, *S)`` without the background."""
    return logits.float().sigmoid() if sigmoid else logits.float().softmax(dim=0)[1:]


def all_probabilities(stored: Tensor, sigmoid: bool) -> Tensor:
    """Put back the background that `stored_channels` left out: ``(B, R, *S)`` to ``(B, K, *S)``, at least `FLOOR`."""
    if sigmoid:
        return stored.clamp(FLOOR, 1 - FLOOR)
    background = 1 - stored.sum(dim=1, keepdim=True)
    return torch.cat((background, stored), dim=1).clamp(min=FLOOR)
