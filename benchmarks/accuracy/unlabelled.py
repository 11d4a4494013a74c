"""Make the data set of few_labels.yaml in which the teacher has labelled the scans that have no labels.

Eight cases keep their labels, 32 get those that a teacher trained on 120 other patients predicts, and the validation
cases are fold 0's. nnU-Net predicts and preprocesses. Run studies/teachers.yaml first.

    python benchmarks/accuracy/unlabelled.py --work FOLDER
"""

import argparse
import json
import os
import shutil
import subprocess
from pathlib import Path

from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw
from prepare import DATASETS, TEACHER
from run import ENVIRONMENT, teacher_folder

LABELLER = "hippocampus-2d-120-others__2500-iterations__AdamW-0-003__seed0"
NAME = "Dataset904_HippocampusTeacherLabels"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="as of run.py")
    args = parser.parse_args()
    original = DATASETS["4"]["name"]
    source, raw = (Path(str(nnUNet_raw)) / name for name in (original, NAME))
    before, after = (Path(str(nnUNet_preprocessed)) / name for name in (original, NAME))
    splits = json.loads((before / "splits_final.json").read_text())
    few, both, validation = splits[5]["train"], splits[7]["train"], splits[0]["val"]
    unlabelled = [case for case in both if case not in few]
    for part in ("imagesTr", "labelsTr", "unlabelled"):
        (raw / part).mkdir(parents=True, exist_ok=True)
    for case in [*both, *validation]:
        shutil.copyfile(source / "imagesTr" / f"{case}_0000.nii.gz", raw / "imagesTr" / f"{case}_0000.nii.gz")
    for case in [*few, *validation]:
        shutil.copyfile(source / "labelsTr" / f"{case}.nii.gz", raw / "labelsTr" / f"{case}.nii.gz")
    for case in unlabelled:
        shutil.copyfile(source / "imagesTr" / f"{case}_0000.nii.gz", raw / "unlabelled" / f"{case}_0000.nii.gz")
    predict = ["nnUNetv2_predict_from_modelfolder", "-i", raw / "unlabelled", "-o", raw / "predicted", "-f", "6"]
    predict += ["-m", teacher_folder(args.work, LABELLER), "-device", "cpu", "-npp", "1", "-nps", "1"]
    subprocess.run(list(map(str, predict)), check=True, env=os.environ | ENVIRONMENT)
    for case in unlabelled:
        shutil.copyfile(raw / "predicted" / f"{case}.nii.gz", raw / "labelsTr" / f"{case}.nii.gz")
    dataset_json = json.loads((source / "dataset.json").read_text()) | {"numTraining": len(both) + len(validation)}
    after.mkdir(parents=True, exist_ok=True)
    for folder in (raw, after):
        (folder / "dataset.json").write_text(json.dumps(dataset_json))
    shutil.copyfile(before / "dataset_fingerprint.json", after / "dataset_fingerprint.json")
    for plans in (TEACHER, *DATASETS["4"]["students"]):
        content = json.loads((before / f"{plans}.json").read_text()) | {"dataset_name": NAME}
        (after / f"{plans}.json").write_text(json.dumps(content, indent=2))
    (after / "splits_final.json").write_text(json.dumps([{"train": both, "val": validation}]))
    subprocess.run(["nnUNetv2_preprocess", "-d", "904", "-plans_name", TEACHER, "-c", "2d", "-np", "1"], check=True)


if __name__ == "__main__":
    main()
