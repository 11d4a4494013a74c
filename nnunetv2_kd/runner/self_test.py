"""A test image, with nnU-Net's own result for it from the time of the export."""

import json
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from .cases import Case
from .images import read_image
from .predictor import Predictor
from .scratch import Stack

FOLDER = "self_test"
NAME, EXPECTED, PREVIOUS, LOGITS = "image", "expected", "previous", "logits.json"
MOST_VOXELS = 1e-3  # share of voxels that may differ: runtimes round differently, and noise is full of ties
MOST_LOGITS = 1e-2  # share of the largest logit by which logits may differ


@dataclass
class SelfTest:
    """The result of the self-test.

    Attributes:
        voxels, differing: number of voxels of the segmentation, and how many of them differ.
        logits_differ_by: largest difference at some positions at the network's spacing, divided by the largest logit; 0
            if not compared.
        seconds: of the prediction.
    """

    voxels: int
    differing: int
    logits_differ_by: float
    seconds: float

    @property
    def passed(self) -> bool:
        return self.differing <= MOST_VOXELS * self.voxels and self.logits_differ_by <= MOST_LOGITS

    def summary(self) -> str:
        return (
            f"Self-test {'passed' if self.passed else 'FAILED'}: {self.differing} of {self.voxels} voxels differ from "
            f"nnU-Net's own prediction, logits by at most {self.logits_differ_by:.1e} of the largest; "
            f"{self.seconds:.1f} s"
        )


def test_case(predictor: Predictor) -> Case:
    """The test image's files."""
    folder, model = predictor.model.folder / FOLDER, predictor.model
    files = sorted(folder.glob(f"{NAME}_*{model.file_ending}"))
    previous = folder / f"{PREVIOUS}{model.file_ending}"
    return Case(NAME, files, previous if previous.is_file() else None)


def self_test(predictor: Predictor) -> SelfTest:
    """Segment the test image and compare."""
    model, case = predictor.model, test_case(predictor)
    folder = model.folder / FOLDER
    image = read_image(model.reader, case.files, len(model.channels))
    expected = read_image(model.reader, [folder / f"{EXPECTED}{model.file_ending}"], 1).voxels[0]
    previous = read_image(model.reader, [case.previous], 1).voxels[0] if case.previous is not None else None
    expected_logits = json.loads((folder / LOGITS).read_text(encoding="utf-8"))
    differ_by = []
    started = time.perf_counter()
    found = predictor.segment(
        lambda: (image.voxels.copy(), image.spacing),
        previous,
        look=lambda logits: differ_by.append(_largest_difference(logits, expected_logits)),
    )
    return SelfTest(
        voxels=int(found.size),
        differing=int((found != expected).sum()) if found.shape == expected.shape else int(found.size),
        logits_differ_by=differ_by[0],
        seconds=time.perf_counter() - started,
    )


def _largest_difference(logits: Stack, expected_logits: dict[str, Any]) -> float:
    """The largest difference from the stored logits, divided by the largest of these."""
    if list(logits.shape) != expected_logits["shape"]:
        return float("inf")
    places = tuple(np.array(expected_logits["places"]).T)
    found = np.stack([np.asarray(logits[number][places], dtype=np.float64) for number in range(len(logits))])
    expected = np.array(expected_logits["logits"], dtype=np.float64)
    return float(np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-6))
