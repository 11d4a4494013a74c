"""Mirroring with a teacher trained without it, on two structures that are each other's mirror image.

Every image holds bright shapes like the letter L and their mirror images, which are the two labels, at random positions
and in random directions. 2d networks, trained by nnU-Net's own command: a teacher without mirroring, a student mirrored
along its trainer's axes (``mirroring: trainer``), and one mirrored like its teacher (``mirroring: teacher``, the
default).

    python benchmarks/mirrored_organs.py -o FOLDER
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from nnunetv2.evaluation.evaluate_predictions import load_summary_json
from rich.console import Console
from SimpleITK import GetImageFromArray, WriteImage

from nnunetv2_kd.demo.run import Runner

DATASET = "Dataset310_MirroredOrgans"
TRAIN = "nnUNetv2_train 310 2d 0 -p {plans} -tr {trainer} -device cpu"
COMMON: dict[str, Any] = {"iterations_per_epoch": 50, "val_iterations_per_epoch": 1, "seed": 0, "optimizer": "adamw"}
LETTER = np.array([[1, 0, 0], [1, 0, 0], [1, 0, 0], [1, 1, 1]]).repeat(3, 0).repeat(3, 1)
LABELS = {"background": 0, "left": 1, "right": 2}


def case(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Four slices of 48 by 48, with a letter or its mirror image in each quarter of every slice."""
    labels = np.zeros((4, 48, 48), np.uint8)
    for plane in labels:
        for quarter in range(4):
            label = int(rng.integers(1, 3))
            letter = np.rot90(LETTER if label == 1 else LETTER[:, ::-1], int(rng.integers(4)))
            row, column = np.array(divmod(quarter, 2)) * 24 + rng.integers(0, 24 - max(letter.shape) + 1, 2)
            plane[row : row + letter.shape[0], column : column + letter.shape[1]] = letter * label
    return (100 * (labels > 0) + rng.normal(0, 20, labels.shape)).astype(np.float32), labels


def write_dataset(folder: Path, cases: int) -> None:
    rng = np.random.default_rng(0)
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    for number in range(cases):
        image, labels = case(rng)
        WriteImage(GetImageFromArray(image), str(folder / "imagesTr" / f"organs_{number:02d}_0000.nii.gz"))
        WriteImage(GetImageFromArray(labels), str(folder / "labelsTr" / f"organs_{number:02d}.nii.gz"))
    content = {"channel_names": {"0": "MRI"}, "labels": LABELS, "numTraining": cases, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(content))


def small_plans(file: Path) -> None:
    plans = json.loads(file.read_text())
    configuration = plans["configurations"]["2d"]
    kwargs = configuration["architecture"]["arch_kwargs"]
    kwargs["features_per_stage"] = [min(8 * 2**stage, 32) for stage in range(kwargs["n_stages"])]
    configuration["batch_size"] = 8
    file.write_text(json.dumps(plans))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--cases", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=12)
    args = parser.parse_args()
    console, folder = Console(), args.o.absolute()
    shutil.rmtree(folder, ignore_errors=True)
    write_dataset(folder / "raw" / DATASET, args.cases)
    run = Runner(folder, console)
    run("nnUNetv2_plan_and_preprocess -d 310 -c 2d -np 1 -npfp 1")
    small_plans(folder / "preprocessed" / DATASET / "nnUNetPlans.json")
    run("nnUNetv2_kd plan -d 310 -c 2d --width 0.5 -o Student")
    options = folder / "options.yaml"

    def train(trainer: str, plans: str, name: str, **own: Any) -> None:
        options.write_text(yaml.safe_dump({**COMMON, "epochs": args.epochs, **own}))
        run(TRAIN.format(plans=plans, trainer=trainer), options)
        trained = folder / "results" / DATASET / f"{trainer}__{plans}__2d"
        if name:
            trained = trained.rename(trained.with_name(f"{name}__{plans}__2d"))
        dice = load_summary_json(str(trained / "fold_0" / "validation" / "summary.json"))["foreground_mean"]["Dice"]
        console.print(f"{own.get('mirroring')}: {trained.name}: mean validation Dice {dice:.3f}", highlight=False)

    train("nnUNetTrainerKDBaseline", "nnUNetPlans", "Teacher", student={"width": 1.0}, mirroring=[])
    teacher = {"trainer": "Teacher", "plans": "nnUNetPlans"}
    train("nnUNetTrainerKDBaseline", "Student", "AloneAllAxes", mirroring="trainer")
    train("nnUNetTrainerRegionKD", "Student", "AllAxes", teacher=teacher, mirroring="trainer")
    train("nnUNetTrainerRegionKD", "Student", "AsTeacher", teacher=teacher, mirroring="teacher")


if __name__ == "__main__":
    main()
