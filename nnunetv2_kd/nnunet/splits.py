"""nnU-Net's folds: ``splits_final.json``."""

from pathlib import Path

from nnunetv2_kd.errors import KDError
from nnunetv2_kd.nnunet.datasets import dataset_id
from nnunetv2_kd.nnunet.files import read_json

SPLITS = "splits_final.json"
MEND = "Remove it, and nnU-Net makes it again."

Split = dict[str, list[str]]


def read_splits(dataset: Path) -> list[Split]:
    """The folds of a preprocessed dataset; none where nnU-Net has not made them yet.

    Args:
        dataset: its folder under ``nnUNet_preprocessed``.

    Raises:
        KDError: where the file is no list of folds.
    """
    file = dataset / SPLITS
    if not file.is_file():
        return []
    splits = read_json(file, mend=MEND)
    if not isinstance(splits, list):
        raise KDError(f"{file} holds no list of folds. {MEND}")
    return splits


def make_splits(dataset: Path) -> list[Split]:
    """nnU-Net's own five folds of a preprocessed dataset, as it makes them at the first training.

    Raises:
        KDError: where there are too few cases.
    """
    from nnunetv2.utilities.crossval_split import generate_crossval_split  # scikit-learn, seconds to import

    ending = read_json(dataset / "dataset.json")["file_ending"]
    cases = sorted(f.name.removesuffix(ending) for f in (dataset / "gt_segmentations").glob(f"*{ending}"))
    if len(cases) < 5:
        raise KDError(
            f"{dataset} holds {len(cases)} preprocessed cases, nnU-Net's five folds need five. "
            f"Preprocess the dataset: nnUNetv2_plan_and_preprocess -d {dataset_id(dataset.name)}"
        )
    return [{key: [str(case) for case in split[key]] for key in split} for split in generate_crossval_split(cases)]
