"""nnU-Net's folds: ``splits_final.json``."""

from pathlib import Path
from typing import Any

from nnunetv2_kd.errors import KDError
from nnunetv2_kd.nnunet.datasets import dataset_id
from nnunetv2_kd.nnunet.files import read_json
from nnunetv2_kd.nnunet.model_files import is_plain_name

SPLITS = "splits_final.json"
MEND = "Remove it, and nnU-Net will make it again."

Split = dict[str, list[str]]


def read_splits(dataset: Path) -> list[Split]:
    """The folds of a preprocessed dataset; empty if nnU-Net has not made them yet.

    Args:
        dataset: its folder under ``nnUNet_preprocessed``.

    Raises:
        KDError: if the file does not hold a list of folds.
    """
    file = dataset / SPLITS
    if not file.is_file():
        return []
    splits = read_json(file, mend=MEND)
    if not isinstance(splits, list) or not all(_is_split(split) for split in splits):
        raise KDError(
            f'{file} does not contain a list of folds, [{{"train": [...], "val": [...]}}, ...] with names of '
            f"cases. {MEND}"
        )
    return splits


def _is_split(split: Any) -> bool:
    if not isinstance(split, dict):
        return False
    return all(isinstance(split.get(k), list) and all(map(is_plain_name, split[k])) for k in ("train", "val"))


def too_few_cases(dataset: Path, count: int) -> str:
    """The message if a dataset has too few cases for nnU-Net's five folds."""
    number = dataset_id(dataset.name)
    if not count:
        return f"{dataset} holds no preprocessed case. Preprocess them: nnUNetv2_plan_and_preprocess -d {number}"
    return (
        f"{dataset} holds {count} preprocessed cases, and nnU-Net's five folds need five. Write {dataset / SPLITS} "
        'yourself, [{"train": ["CASE", ...], "val": ["CASE", ...]}], or train on all cases, with "all" as the fold.'
    )


def make_splits(dataset: Path) -> list[Split]:
    """nnU-Net's own five folds of a preprocessed dataset, the same as its first training would make.

    Raises:
        KDError: if there are too few cases.
    """
    from nnunetv2.utilities.crossval_split import generate_crossval_split  # scikit-learn, seconds to import

    ending = read_json(dataset / "dataset.json")["file_ending"]
    cases = sorted(f.name.removesuffix(ending) for f in (dataset / "gt_segmentations").glob(f"*{ending}"))
    if len(cases) < 5:
        raise KDError(too_few_cases(dataset, len(cases)))
    return [{key: [str(case) for case in split[key]] for key in split} for split in generate_crossval_split(cases)]
