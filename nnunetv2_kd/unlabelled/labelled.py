"""The labelled cases to which the scans are added: their files and folds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunetv2.paths import nnUNet_preprocessed
from nnunetv2.utilities.crossval_split import generate_crossval_split
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

from nnunetv2_kd.nnunet.files import read_json
from nnunetv2_kd.nnunet.splits import SPLITS, Split, read_splits

FOLDS = 5


@dataclass(frozen=True)
class Labelled:
    """The labelled cases of a dataset in nnU-Net's raw format; empty without a dataset.

    Attributes:
        images: the channel files of each case.
        labels: the label file of each case.
        splits: the folds; empty if there are no labelled cases.
    """

    images: Mapping[str, Sequence[str]]
    labels: Mapping[str, str]
    splits: Sequence[Split]


NOBODY = Labelled({}, {}, ())


def read_labelled(folder: Path) -> tuple[Labelled, list[str]]:
    """The labelled cases of a raw dataset, with their folds from splits_final.json, or else those that nnU-Net would
    make.

    Returns:
        The cases, and what is wrong with them, one line each.
    """
    dataset_json = read_json(folder / "dataset.json")
    images, labels = _files(folder, dataset_json)
    missing = [
        f"labelled case {case}: {file} does not exist" for case, file in labels.items() if not Path(file).is_file()
    ]
    missing += [f"labelled case {case}: no image in {folder / 'imagesTr'}" for case in images if not images[case]]
    if not labels:
        missing.append(f"{folder} holds no labelled case; for a dataset of scans alone leave out -d")
    splits = read_splits(Path(nnUNet_preprocessed) / folder.name) if nnUNet_preprocessed.is_set() else []
    for number, split in enumerate(splits):
        strange = sorted({*split["train"], *split["val"]} - images.keys())
        if strange:
            missing.append(f"{SPLITS} of {folder.name}, fold {number}, names {', '.join(strange)}: no labelled case")
    return Labelled(images, labels, splits or folds_of(sorted(images))), missing


def folds_of(cases: Sequence[str]) -> list[Split]:
    """nnU-Net's five folds; with fewer than five cases, as many folds as cases. With one case, a single fold validates
    on it, and trains only on the scans that are added."""
    if len(cases) < 2:
        return [{"train": [], "val": list(cases)}]
    splits = generate_crossval_split(list(cases), n_splits=min(FOLDS, len(cases)))
    return [{key: [str(case) for case in split[key]] for key in ("train", "val")} for split in splits]


def joined_splits(labelled: Labelled, scans: Sequence[str]) -> list[Split]:
    """The folds with the scans added to every training part, and to no validation part. Without labelled cases, folds
    of the scans."""
    if not labelled.splits:
        return folds_of(sorted(scans))
    return [{"train": sorted([*split["train"], *scans]), "val": sorted(split["val"])} for split in labelled.splits]


def _files(folder: Path, dataset_json: dict[str, Any]) -> tuple[dict[str, list[str]], dict[str, str]]:
    if "dataset" in dataset_json:  # nnU-Net's way to name files in other places
        named = get_filenames_of_train_images_and_targets(str(folder), dataset_json)
        return {case: files["images"] for case, files in named.items()}, {c: f["label"] for c, f in named.items()}
    ending = dataset_json["file_ending"]
    names = sorted(file.name.removesuffix(ending) for file in (folder / "labelsTr").glob(f"*{ending}"))
    images = sorted((folder / "imagesTr").glob(f"*{ending}"))
    of_case: dict[str, list[str]] = {name: [] for name in names}
    for file in images:
        of_case.setdefault(file.name[: -len(ending) - len("_0000")], []).append(str(file))
    return of_case, {case: str(folder / "labelsTr" / f"{case}{ending}") for case in of_case}
