"""Make the data set of few_labels.yaml in which the teacher has labelled the scans that have no labels.

Eight cases keep their labels, 32 get those that a teacher trained on 120 other patients predicts, and the validation
cases are fold 0's: what a user has, and types. The labels are made by `nnUNetv2_kd unlabelled`, and nnU-Net
preprocesses. Run studies/teachers.yaml first.

    python benchmarks/accuracy/unlabelled.py --work FOLDER
"""

import argparse
import json
import os
import shutil
import subprocess
from pathlib import Path

from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw
from prepare import DATASETS, TEACHER, run
from run import ENVIRONMENT, teacher_folder

LABELLER = "hippocampus-2d-120-others__2500-iterations__AdamW-0-003__seed0"
LABELLED = "Dataset903_HippocampusFewLabels"
NAME = "Dataset904_HippocampusTeacherLabels"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="as of run.py")
    args = parser.parse_args()
    raw, preprocessed = Path(str(nnUNet_raw)), Path(str(nnUNet_preprocessed))
    original = DATASETS["4"]["name"]
    before, after = preprocessed / original, preprocessed / NAME
    scans = write_labelled(raw / original, raw / LABELLED, before, preprocessed / LABELLED)
    teacher = teacher_folder(args.work, LABELLER)
    command = ["nnUNetv2_kd", "unlabelled", "-d", LABELLED, "-i", scans, "-o", NAME]
    command += ["--teacher_folder", teacher, "-f", "6", "-device", "cpu"]
    subprocess.run(list(map(str, command)), check=True, env=os.environ | ENVIRONMENT)
    shutil.copyfile(before / "dataset_fingerprint.json", after / "dataset_fingerprint.json")
    for plans in (TEACHER, *DATASETS["4"]["students"]):
        content = json.loads((before / f"{plans}.json").read_text()) | {"dataset_name": NAME}
        (after / f"{plans}.json").write_text(json.dumps(content, indent=2))
    run("nnUNetv2_preprocess", "-d", "904", "-plans_name", TEACHER, "-c", "2d", "-np", "1")


def write_labelled(source: Path, labelled: Path, before: Path, after: Path) -> Path:
    """The cases that keep their labels as a data set of their own, with one fold, and the images of the others.

    Returns:
        The folder of these images.
    """
    splits = json.loads((before / "splits_final.json").read_text())
    few, both, validation = splits[5]["train"], splits[7]["train"], splits[0]["val"]
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
