"""How strongly every recipe's terms pull on the student: shares of the gradient in a training's first epoch.

One epoch of nnU-Net's own training for each recipe in configs/, with nnU-Net's three folders and a trained teacher:

    python benchmarks/gradient_shares.py -d 4 -c 2d -p nnUNetPlansStudent --teacher MODEL_FOLDER --work WORK
"""

import argparse
import csv
import os
import subprocess
import sys
from pathlib import Path

import yaml
from rich.console import Console
from rich.table import Table

from nnunetv2_kd.formatting import markdown_line

CONFIGS = Path(__file__).parents[1] / "configs"
NOT_COMPARED = ("cpu", "joint", "multi_teacher", "other_teacher", "stored")  # other teachers, or no terms
RUN = """
import sys, torch
torch.set_num_threads(1)
from nnunetv2.run.run_training import run_training
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
nnUNetTrainer.perform_actual_validation = lambda self, npz: None  # only the terms matter
dataset, configuration, plans = sys.argv[1:]
run_training(dataset, configuration, "0", "nnUNetTrainerKD", plans, device=torch.device("cpu"))
"""


def shares(recipe: Path, args: argparse.Namespace) -> dict[str, tuple[float, float, float]]:
    """Weight, share of the loss and share of the gradient of every term of a recipe."""
    folder = (args.work / recipe.stem).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    terms = yaml.safe_load(recipe.read_text())["terms"]
    short = {"epochs": 1, "iterations_per_epoch": args.iterations, "val_iterations_per_epoch": 1, "seed": 0}
    options = {"terms": terms, "teacher": {"folder": str(args.teacher.absolute())}, **short}
    (folder / "options.yaml").write_text(yaml.safe_dump(options))
    env = os.environ | {
        "nnUNet_results": str(folder),
        "nnUNet_kd_config": str(folder / "options.yaml"),
        "nnUNet_n_proc_DA": "0",
        "OMP_NUM_THREADS": "1",
    }
    with (folder / "log.txt").open("w") as log:
        command = [sys.executable, "-c", RUN, args.d, args.c, args.p]
        subprocess.run(command, env=env, stdout=log, stderr=subprocess.STDOUT, check=True)
    with next(folder.glob("*/*/fold_0/kd_progress.csv")).open(newline="") as stream:
        row = next(csv.DictReader(stream))
    return {
        name: (term.get("weight", 1.0), float(row[f"{name}_share"]), float(row[f"{name}_gradient_share"]))
        for name, term in terms.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-d", required=True, help="dataset id")
    parser.add_argument("-c", required=True, help="configuration")
    parser.add_argument("-p", required=True, help="the student's plans")
    parser.add_argument("--teacher", type=Path, required=True, help="a model folder with fold_0")
    parser.add_argument("--work", type=Path, required=True, help="for trainings and logs")
    parser.add_argument("--iterations", type=int, default=50)
    parser.add_argument("--markdown", action="store_true")
    args = parser.parse_args()
    recipes = [file for file in sorted(CONFIGS.glob("*.yaml")) if file.stem not in NOT_COMPARED]
    header = ["recipe", "term", "weight", "share of the loss", "share of the gradient"]
    lines = [
        [recipe.stem, name, f"{weight:g}", f"{100 * of_loss:.1f} %", f"{100 * of_gradient:.1f} %"]
        for recipe in recipes
        for name, (weight, of_loss, of_gradient) in shares(recipe, args).items()
    ]
    if args.markdown:
        print("\n".join(markdown_line(line) for line in [header, ["---"] * len(header), *lines]))
        return
    table = Table(*header)
    for line in lines:
        table.add_row(*line)
    Console().print(table)


if __name__ == "__main__":
    main()
