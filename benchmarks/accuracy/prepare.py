"""Preprocess the datasets of the studies, and write the plans of their teachers and students.

Hippocampus (MSD Task04) slice by slice, and ultrasound (USGRA) at half its resolution: small enough for hundreds of
trainings on one core. nnU-Net's plans are kept, except for the sizes below. Set nnU-Net's three paths first.

    python benchmarks/accuracy/prepare.py
"""

import json
import shutil
import subprocess
from collections.abc import Iterable
from copy import deepcopy
from pathlib import Path

import numpy as np
from nnunetv2.paths import nnUNet_preprocessed
from nnunetv2.utilities.crossval_split import generate_crossval_split

ROOT = Path(__file__).parents[2]
DATASETS = {
    "4": {
        "name": "Dataset004_Hippocampus",
        "patch_size": [56, 40],
        "batch_size": 8,
        "spacing": None,
        "features": [16, 32, 64, 128],
        "students": {"nnUNetPlansS4": 0.5, "nnUNetPlansS16": 0.25, "nnUNetPlansS64": 0.125},
    },
    "61": {
        "name": "Dataset061_USGRA",
        "patch_size": [128, 128],
        "batch_size": 4,
        "spacing": [2.0, 2.0],
        "features": [8, 16, 32, 64, 128, 128],
        "students": {"nnUNetPlansS4": 0.5, "nnUNetPlansS16": 0.25, "nnUNetPlansS64": 0.125},
    },
}
TEACHER = "nnUNetPlansTeacher"
IN_3D = {"features": [16, 32, 64, 128], "batch_size": 2}  # of three_dimensions.yaml, hippocampus; nnU-Net's patch
SHAPES = (  # of the studies shapes, shapes_ultrasound and shapes_wider: data set, plans, channels, convolutions a stage
    ("4", "nnUNetPlansShapeA", "8,16,16,24", 1),
    ("4", "nnUNetPlansShapeB", "8,16,32,64", 1),
    ("4", "nnUNetPlansShapeC", "8,16,16,24", 2),
    ("4", "nnUNetPlansShapeD", "16,24,32,56", 1),
    ("61", "nnUNetPlansShapeE", "4,8,16,32,64,64", 1),
    ("61", "nnUNetPlansShapeF", "4,6,8,16,24,32", 2),
    ("4", "nnUNetPlansWiderS4", "12,24,48,96", 1),
    ("4", "nnUNetPlansWider", "18,36,72,144", 1),
    ("4", "nnUNetPlansWider24", "24,48,96,192", 1),
    ("61", "nnUNetPlansWiderS4", "6,12,24,48,96,96", 1),
    ("61", "nnUNetPlansTwiceS4", "8,16,32,64,128,128", 1),
    ("61", "nnUNetPlansWider", "10,20,40,80,160,160", 1),
)
BATCHES = {"nnUNetPlansS16Batch4": 4, "nnUNetPlansS16Batch16": 16}  # of batch_size.yaml, hippocampus
THREE_STAGES, RESIDUAL = "nnUNetPlansThreeStages", "nnUNetPlansResidual"  # of shapes_other.yaml, hippocampus
OTHER_SHAPES = (  # plans, made from, channels
    ("nnUNetPlansThreeStagesS16", THREE_STAGES, "8,16,32"),
    ("nnUNetPlansResidualS16", RESIDUAL, "4,8,16,32"),
)
FEW, UNLABELLED = 8, 32  # labelled cases, and scans that join them, of fold 0's training cases
DOZEN = 12  # labelled cases that all other training cases of fold 0 join as scans
DEMO = ROOT / "nnunetv2_kd" / "demo"


def run(*command: str) -> None:
    print("$", *command, flush=True)
    subprocess.run(command, check=True)


def set_features(network: dict, features: list[int]) -> None:
    """Give a network these channels, and as many stages."""
    stages = len(features)
    network |= {"features_per_stage": features, "n_stages": stages}
    for key in ("kernel_sizes", "strides", "n_conv_per_stage"):
        network[key] = network[key][:stages]
    network["n_conv_per_stage_decoder"] = network["n_conv_per_stage_decoder"][: stages - 1]


def teacher_plans(plans: dict, wanted: dict) -> dict:
    """nnU-Net's plans with a study's sizes."""
    configuration = plans["configurations"]["2d"]
    set_features(configuration["architecture"]["arch_kwargs"], wanted["features"])
    configuration |= {"patch_size": wanted["patch_size"], "batch_size": wanted["batch_size"]}
    if wanted["spacing"] is not None:
        factor = [new / old for new, old in zip(wanted["spacing"], configuration["spacing"], strict=True)]
        size = configuration["median_image_size_in_voxels"]
        configuration["median_image_size_in_voxels"] = [s / f for s, f in zip(size, factor, strict=True)]
        configuration["spacing"] = wanted["spacing"]
    configuration["data_identifier"] = f"{TEACHER}_2d"
    return plans | {"plans_name": TEACHER, "configurations": {"2d": configuration}}


def other_architectures(plans: dict) -> dict[str, dict]:
    """The teacher's plans with three stages, and with nnU-Net's residual encoder of one block a stage."""
    made = {name: deepcopy(plans) | {"plans_name": name} for name in (THREE_STAGES, RESIDUAL)}
    three, residual = (made[name]["configurations"]["2d"]["architecture"] for name in (THREE_STAGES, RESIDUAL))
    set_features(three["arch_kwargs"], three["arch_kwargs"]["features_per_stage"][:3])
    residual["network_class_name"] = "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet"
    stages = len(residual["arch_kwargs"].pop("n_conv_per_stage"))
    residual["arch_kwargs"] |= {"n_blocks_per_stage": [1] * stages, "n_conv_per_stage_decoder": [1] * (stages - 1)}
    return made


def derived_dataset(name: str, students: Iterable[str]) -> None:
    """Give a dataset of the same images the fingerprint and the plans of hippocampus, and preprocess it."""
    before, after = (Path(str(nnUNet_preprocessed)) / d for d in (DATASETS["4"]["name"], name))
    shutil.copyfile(before / "dataset_fingerprint.json", after / "dataset_fingerprint.json")
    for plans in (TEACHER, *students):
        content = json.loads((before / f"{plans}.json").read_text()) | {"dataset_name": name}
        (after / f"{plans}.json").write_text(json.dumps(content, indent=2))
    run("nnUNetv2_preprocess", "-d", name[7:10], "-plans_name", TEACHER, "-c", "2d", "-np", "1")


def splits_of(cases: list[str]) -> list[dict[str, list[str]]]:
    """nnU-Net's five folds, and four more with fold 0's validation cases. 5 trains on the few labelled cases, 6 on
    neither these nor the unlabelled ones, 7 on both, 8 on a dozen. Of hippocampus, 9 trains on what the demo's teacher
    has seen, and validates on the demo's held-out cases."""
    splits = [{key: list(map(str, split[key])) for key in split} for split in generate_crossval_split(cases)]
    train = splits[0]["train"]
    few = np.random.RandomState(0).choice(train, FEW, replace=False).tolist()
    rest = [case for case in train if case not in few]
    unlabelled = np.random.RandomState(1).choice(rest, UNLABELLED, replace=False).tolist()
    others = [case for case in rest if case not in unlabelled]
    dozen = np.random.RandomState(2).choice(train, DOZEN, replace=False).tolist()
    held_out = [file.name.removesuffix(".nii.gz") for file in sorted((DEMO / "data" / "labelsTs").glob("*.nii.gz"))]
    seen = [case for case in cases if case not in held_out]
    return [
        *splits,
        *({"train": sorted(chosen), "val": splits[0]["val"]} for chosen in (few, others, few + unlabelled, dozen)),
        *([{"train": seen, "val": held_out}] if set(held_out) <= set(cases) else []),
    ]


def prepare_3d() -> None:
    """Preprocess hippocampus in three dimensions, and write the plans of its student."""
    folder = Path(str(nnUNet_preprocessed)) / DATASETS["4"]["name"]
    plans = json.loads((folder / "nnUNetPlans.json").read_text())
    configuration = plans["configurations"]["3d_fullres"]
    configuration["architecture"]["arch_kwargs"]["features_per_stage"] = IN_3D["features"]
    configuration |= {"batch_size": IN_3D["batch_size"], "data_identifier": f"{TEACHER}3d_3d_fullres"}
    plans |= {"plans_name": f"{TEACHER}3d", "configurations": {"3d_fullres": configuration}}
    (folder / f"{TEACHER}3d.json").write_text(json.dumps(plans, indent=2))
    run("nnUNetv2_preprocess", "-d", "4", "-plans_name", f"{TEACHER}3d", "-c", "3d_fullres", "-np", "1")
    student = ("--width", "0.25", "-o", "nnUNetPlans3dS16")
    run("nnUNetv2_kd", "plan", "-d", "4", "-c", "3d_fullres", "-p", f"{TEACHER}3d", *student)


def main() -> None:
    for number, wanted in DATASETS.items():
        folder = Path(str(nnUNet_preprocessed)) / wanted["name"]
        if not (folder / "nnUNetPlans.json").is_file():
            run("nnUNetv2_extract_fingerprint", "-d", number, "-np", "1")
            run("nnUNetv2_plan_experiment", "-d", number)
        plans = teacher_plans(json.loads((folder / "nnUNetPlans.json").read_text()), wanted)
        (folder / f"{TEACHER}.json").write_text(json.dumps(plans, indent=2))
        run("nnUNetv2_preprocess", "-d", number, "-plans_name", TEACHER, "-c", "2d", "-np", "1")
        cases = sorted(file.stem for file in (folder / f"{TEACHER}_2d").glob("*.pkl"))
        (folder / "splits_final.json").write_text(json.dumps(splits_of(cases), indent=2))
        for name, width in wanted["students"].items():
            run("nnUNetv2_kd", "plan", "-d", number, "-c", "2d", "-p", TEACHER, "--width", str(width), "-o", name)
    prepare_3d()
    for number, name, features, convs in SHAPES:
        shape = ("--features", features, "--convs-per-stage", str(convs))
        run("nnUNetv2_kd", "plan", "-d", number, "-c", "2d", "-p", TEACHER, *shape, "-o", name)
    folder = Path(str(nnUNet_preprocessed)) / DATASETS["4"]["name"]
    for name, plans in other_architectures(json.loads((folder / f"{TEACHER}.json").read_text())).items():
        (folder / f"{name}.json").write_text(json.dumps(plans, indent=2))
    for name, made_from, features in OTHER_SHAPES:
        run("nnUNetv2_kd", "plan", "-d", "4", "-c", "2d", "-p", made_from, "--features", features, "-o", name)
    for name, batch_size in BATCHES.items():
        size = ("--width", "0.25", "--batch-size", str(batch_size))
        run("nnUNetv2_kd", "plan", "-d", "4", "-c", "2d", "-p", TEACHER, *size, "-o", name)


if __name__ == "__main__":
    main()
