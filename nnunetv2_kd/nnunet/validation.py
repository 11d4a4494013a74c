"""Which cases a fold was validated on. nnU-Net's summary.json covers every file in the validation folder, even those
left by a training with other folds; its log tells them apart."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from nnunetv2_kd.errors import KDError
from nnunetv2_kd.nnunet.files import read_json

FOLDER = "validation"
SET_ASIDE = "validation_of_older_folds"
SPLIT = re.compile(r"This split has (\d+) training and (\d+) validation cases")
PREDICTED = re.compile(r"predicting (\S+)\s*$", re.MULTILINE)


@dataclass(frozen=True)
class Validation:
    """The cases of a fold's validation.

    Attributes:
        cases: validation cases of the last training.
        stale: further cases in the folder, from a training with other folds.
        counts: numbers of training and validation cases in the last training; None if there is no log.
    """

    cases: frozenset[str]
    stale: frozenset[str]
    counts: tuple[int, int] | None


def read_validation(fold: Path, ending: str, split: Iterable[str] = ()) -> Validation:
    """Find a fold's validation cases from the files in the folder (or summary.json, if only that exists, as in a zip)
    and the newest log of a validation.

    Args:
        fold: folder of the fold.
        ending: of the dataset's files.
        split: the fold's validation cases in the current ``splits_final.json``; needed after a training on several
            GPUs, whose log names only some cases.
    """
    found = {file.name.removesuffix(ending) for file in (fold / FOLDER).glob(f"*{ending}")} or _in_summary(fold, ending)
    logs = sorted(fold.glob("training_log_*.txt"), key=lambda log: [int(n) for n in re.findall(r"\d+", log.name)])[::-1]
    texts = [text for log in logs if SPLIT.search(text := log.read_text(errors="replace"))]
    if not texts:
        return Validation(frozenset(found), frozenset(), None)
    text = next((text for text in texts if PREDICTED.search(text)), texts[0])
    training, validation = (int(number) for number in SPLIT.findall(text)[-1])
    predicted, now = set(PREDICTED.findall(text)) & found, set(split) & found
    cases = next((some for some in (found, predicted, now) if len(some) == validation), found)
    return Validation(frozenset(cases), frozenset(found - cases), (training, validation))


def set_stale_aside(fold: Path, validation: Iterable[str], ending: str) -> list[str]:
    """Move predictions of cases that are no longer validation cases out of the validation folder.

    Args:
        fold: folder of the fold.
        validation: names of its validation cases.
        ending: of the dataset's files.

    Returns:
        Lines for the log.
    """
    current = tuple(f"{name}." for name in validation)
    files = [file for end in (ending, ".npz", ".pkl") for file in (fold / FOLDER).glob(f"*{end}")]
    stale = [file for file in files if not file.name.startswith(current)]
    if not stale:
        return []
    (fold / SET_ASIDE).mkdir(exist_ok=True)
    for file in stale:
        file.replace(fold / SET_ASIDE / file.name)
    moved = sorted({file.name.removesuffix(ending) for file in stale if file.name.endswith(ending)})
    return [
        f"{len(moved)} cases in {FOLDER} are no longer validation cases of this fold, because splits_final.json has "
        f"changed; nnU-Net would count them. They were moved to {fold / SET_ASIDE}: {', '.join(moved)}"
    ]


def _in_summary(fold: Path, ending: str) -> set[str]:
    try:
        entries = read_json(fold / FOLDER / "summary.json")["metric_per_case"]
        return {Path(entry["prediction_file"]).name.removesuffix(ending) for entry in entries}
    except (KDError, KeyError, TypeError, AttributeError):
        return set()
