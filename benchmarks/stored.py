"""The cost of a training step with a stored and with a running teacher, including data loading and augmentation.

On the bundled cases with the plans that nnU-Net makes for them: a teacher of the planned width (trained for only one
iteration, because its quality does not affect the cost), its store, and students of half the width. The trainers take
turns step by step; the result is the median ratio to the step of the student alone.

    python benchmarks/stored.py
"""

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch
import yaml
from measuring import Step, in_turn
from rich.console import Console
from rich.table import Table

from nnunetv2_kd.demo.run import CONFIGURATION, DATA, DATASET, Runner
from nnunetv2_kd.trainers import nnUNetTrainerKD, nnUNetTrainerKDBaseline, nnUNetTrainerRegionKD
from nnunetv2_kd.trainers.environment import seed_everything

SHORT = {"epochs": 1, "iterations_per_epoch": 1, "val_iterations_per_epoch": 1, "seed": 0}
GRAPH = {"voxel_kl": {}, "region_kl": {}, "region_affinity": {}, "region_graph": {}}
STORED = {"stored_teacher": "fold_0"}
ARMS: dict[str, tuple[type, dict[str, Any]]] = {
    "alone": (nnUNetTrainerKDBaseline, {}),
    "KD, stored": (nnUNetTrainerKD, STORED),
    "RegionKD, stored": (nnUNetTrainerRegionKD, STORED),
    "RegionKD with region graph, stored": (nnUNetTrainerRegionKD, STORED | {"terms": GRAPH}),
    "KD, running": (nnUNetTrainerKD, {}),
    "RegionKD, running": (nnUNetTrainerRegionKD, {}),
}


def trainer_of(kind: type, width: float, folder: Path, device: str, options: dict[str, Any]) -> Any:
    file = folder / "options.yaml"
    file.write_text(yaml.safe_dump({**SHORT, "student": {"width": width}, **options}))
    os.environ.update({"nnUNet_kd_config": str(file)})
    preprocessed = folder / "preprocessed" / DATASET
    plans = json.loads((preprocessed / "nnUNetPlans.json").read_text()) | {"continue_training": False}
    dataset_json = json.loads((preprocessed / "dataset.json").read_text())
    return kind(plans, CONFIGURATION, 0, dataset_json, torch.device(device))


def prepare(folder: Path, device: str, console: Console) -> None:
    """Make preprocessed cases, a teacher and its store, and set nnU-Net's folders for this process."""
    shutil.copytree(DATA, folder / "raw" / DATASET)
    run = Runner(folder, console)
    run(f"nnUNetv2_plan_and_preprocess -d 4 -c {CONFIGURATION} -np 2")
    os.environ.update(run.env | {"nnUNet_n_proc_DA": "0"})  # batches are made in this process, which is timed
    teacher = trainer_of(nnUNetTrainerKDBaseline, 1.0, folder, device, {})
    teacher.run_training()
    model = Path(teacher.output_folder).parent
    model.rename(model.parent / f"nnUNetTrainer__nnUNetPlans__{CONFIGURATION}")
    run(f"nnUNetv2_kd store -d 4 -c {CONFIGURATION} -f 0 --disable_tta -device {device}")


def step_of(trainer: Any) -> Step:
    trainer.on_train_start()
    trainer.on_epoch_start()
    trainer.on_train_epoch_start()
    return lambda: trainer.train_step(next(trainer.dataloader_train))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", type=Path, default=None, help="write the numbers here")
    args = parser.parse_args()
    console = Console(width=120, file=sys.stdout)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        with (folder / "trainers.log").open("w") as log, redirect_stdout(log):
            prepare(folder, args.device, console)
            steps = {name: step_of(trainer_of(arm[0], 0.5, folder, args.device, arm[1])) for name, arm in ARMS.items()}
        # the same batch for all in a round, because augmentations take different times
        took = in_turn(steps, args.rounds, 1, args.device, before=seed_everything)
    table = Table("step", "ms", "/ alone", title=f"hippocampus, data loading included, {args.device}")
    result = {}
    for name, times in took.items():
        ratio = statistics.median(t / alone for t, alone in zip(times, took["alone"], strict=True))
        result[name] = {"ms": 1000 * statistics.median(times), "over_alone": ratio}
        table.add_row(name, f"{result[name]['ms']:.0f}", f"{ratio:.2f}")
    console.print(table)
    if args.json is not None:
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
