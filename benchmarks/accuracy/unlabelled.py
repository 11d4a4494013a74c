"""Make the datasets of few_labels.yaml and unlabelled.yaml, in which a teacher labels the scans without labels.

Some cases keep their labels, the scans get the teacher's predictions as labels, and the validation cases are fold 0's,
as for a user. `nnUNetv2_kd unlabelled` makes the labels, and nnU-Net preprocesses. Run studies/teachers.yaml first.

    python benchmarks/accuracy/unlabelled.py --work FOLDER
"""

import argparse
import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw
from prepare import DATASETS, TEACHER, derived_dataset
from run import ENVIRONMENT, teacher_folder


@dataclass(frozen=True)
class Labelling:
    """A dataset that a teacher labels in part.

    Attributes:
        name, labelled: the dataset, and the dataset of its labelled cases alone.
        few, both: folds from prepare.py that train on the labelled cases (None: there are none but for validation), and
            on these and the scans.
        teacher, fold: from studies/teachers.yaml.
    """

    name: str
    labelled: str
    few: int | None
    both: int
    teacher: str
    fold: int


TRAINED = "__2500-iterations__AdamW-0-003__seed0"
LABELLINGS = (
    Labelling("Dataset904_Hippo8Of120", "Dataset903_Hippo8", 5, 7, f"hippocampus-2d-120-others{TRAINED}", 6),
    Labelling("Dataset907_Hippo12Of12", "Dataset906_Hippo12", 8, 0, f"hippocampus-2d-12-labelled{TRAINED}", 8),
    Labelling("Dataset908_Hippo12Of160", "Dataset906_Hippo12", 8, 0, f"hippocampus-2d{TRAINED}", 0),
    Labelling("Dataset914_Hippo0Of120", "Dataset913_Hippo0", None, 7, f"hippocampus-2d-120-others{TRAINED}", 6),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="the same folder as for run.py")
    args = parser.parse_args()
    preprocessed = Path(str(nnUNet_preprocessed))
    for wanted in LABELLINGS:
        if not (preprocessed / wanted.name / f"{TEACHER}_2d").is_dir():
            label(wanted, args.work, preprocessed)


def label(wanted: Labelling, work: Path, preprocessed: Path) -> None:
    """Label and preprocess one dataset."""
    original, raw = DATASETS["4"]["name"], Path(str(nnUNet_raw))
    before = preprocessed / original
    folds = (wanted.few, wanted.both)
    scans = write_labelled(raw / original, raw / wanted.labelled, before, preprocessed / wanted.labelled, folds)
    command = ["nnUNetv2_kd", "unlabelled", "-d", wanted.labelled, "-i", scans, "-o", wanted.name]
    command += ["--teacher_folder", teacher_folder(work, wanted.teacher), "-f", wanted.fold, "-device", "cpu"]
    subprocess.run(list(map(str, command)), check=True, env=os.environ | ENVIRONMENT)
    derived_dataset(wanted.name, DATASETS["4"]["students"])


def write_labelled(source: Path, labelled: Path, before: Path, after: Path, folds: tuple[int | None, int]) -> Path:
    """Write the cases that keep their labels as a dataset with one fold, and the images of the others as scans.

    Args:
        source, labelled: raw data of all cases, and of those with labels.
        before, after: the same, preprocessed.
        folds: see `Labelling.few` and `Labelling.both`.

    Returns:
        The folder of the scans.
    """
    splits = json.loads((before / "splits_final.json").read_text())
    few = [] if folds[0] is None else splits[folds[0]]["train"]
    both, validation = splits[folds[1]]["train"], splits[0]["val"]
    scans = labelled / "scans"
    for folder in (labelled / "imagesTr", labelled / "labelsTr", scans, after):
        folder.mkdir(parents=True, exist_ok=True)
    for case in [*few, *validation]:
        shutil.copyfile(source / "imagesTr" / f"{case}_0000.nii.gz", labelled / "imagesTr" / f"{case}_0000.nii.gz")
        shutil.copyfile(source / "labelsTr" / f"{case}.nii.gz", labelled / "labelsTr" / f"{case}.nii.gz")
    for case in both:
        if case not in few:
            shutil.copyfile(source / "imagesTr" / f"{case}_0000.nii.gz", scans / f"{case}_0000.nii.gz")
    dataset_json = json.loads((source / "dataset.json").read_text())
    dataset_json["numTraining"] = len(few) + len(validation)
    (labelled / "dataset.json").write_text(json.dumps(dataset_json))
    (after / "splits_final.json").write_text(json.dumps([{"train": few, "val": validation}]))
    return scans


if __name__ == "__main__":
    main()
