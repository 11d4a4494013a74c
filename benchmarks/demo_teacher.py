"""Train the teacher that comes with the demo (nnunetv2_kd/demo/teacher.zip), on a whole hippocampus set.

Medical Segmentation Decathlon, Task04, in nnU-Net's raw format, without the demo's held-out cases. Half of nnU-Net's
width, 2000 iterations, AdamW. The result is a stock zip with float16 weights, and its SHA-256. Processors round
differently, so a second training gives a teacher of the same quality, but not the same bytes.

    python benchmarks/demo_teacher.py Dataset004_Hippocampus --work FOLDER
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path

from nnunetv2_kd.demo.run import CONFIGURATION, DATA, DATASET, OPTIONS, TEACHER

LICENCE = "CC-BY-SA 4.0"  # of the data


def copy_cases(source: Path, target: Path) -> None:
    """Copy the dataset without the demo's held-out cases."""
    kept_back = {file.name.removesuffix(".nii.gz") for file in (DATA / "labelsTs").iterdir()}
    for part in ("imagesTr", "labelsTr"):
        (target / part).mkdir(parents=True, exist_ok=True)
        for file in (source / part).glob("*.nii.gz"):
            if not any(file.name.startswith(case) for case in kept_back):
                shutil.copyfile(file, target / part / file.name)
    found = len(list((target / "labelsTr").iterdir()))
    dataset_json = json.loads((source / "dataset.json").read_text()) | {"numTraining": found}
    (target / "dataset.json").write_text(json.dumps(dataset_json, indent=2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    args = parser.parse_args()
    work = args.work.absolute()
    env = os.environ | {
        "nnUNet_raw": str(work / "raw"),
        "nnUNet_preprocessed": str(work / "preprocessed"),
        "nnUNet_results": str(work / "results"),
        "nnUNet_kd_config": str(OPTIONS / TEACHER.options),
    }

    def run(*command: str) -> None:
        print("$", *command, flush=True)
        subprocess.run(command, check=True, env=env)

    if not (work / "raw").exists():
        copy_cases(args.dataset, work / "raw" / DATASET)
        run("nnUNetv2_plan_and_preprocess", "-d", "4", "-c", CONFIGURATION, "-np", "1")
        of_plan = ("-d", "4", "-c", CONFIGURATION, "--width", "0.5", "--batch-size", "2", "-o", TEACHER.plans)
        run("nnUNetv2_kd", "plan", *of_plan)
    model = ("-p", TEACHER.plans, "-tr", TEACHER.trainer)
    resumed = ["--c"] if next((work / "results").glob("*/*/fold_all/checkpoint_latest.pth"), None) else []
    run("nnUNetv2_train", "4", CONFIGURATION, "all", *model, "-device", "cpu", *resumed)
    images = ("-i", str(DATA / "imagesTs"), "-gt", str(DATA / "labelsTs"))
    of_export = ("--format", "nnunet", "--precision", "fp16", "--licence", LICENCE, "-o", str(work / "exported"))
    run("nnUNetv2_kd", "export", "-d", "4", "-c", CONFIGURATION, "-f", "all", *model, *images, *of_export)
    zipped = next((work / "exported").glob("*.zip"))
    print(f"{zipped}: {zipped.stat().st_size / 1e6:.1f} MB, SHA-256 {hashlib.sha256(zipped.read_bytes()).hexdigest()}")


if __name__ == "__main__":
    main()
