"""Compare ways of training a student: every arm, size, budget and seed, through nnU-Net's own training function.

Reads a grid from a YAML file (see benchmarks/stored.yaml), runs what is not finished yet, and prints a table of
the mean validation Dice per cell with every seed shown. A run is what

    nnUNet_kd_config=OPTIONS nnUNetv2_train DATASET CONFIGURATION FOLD -p PLANS -tr TRAINER -device cpu

does, with one thread per run, so that there can be as many parallel runs as cores.

    python benchmarks/compare.py GRID.yaml OUTPUT_FOLDER --jobs 2
"""

import argparse
import csv
import itertools
import json
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from rich.console import Console
from rich.table import Table

RUN = """
import resource, sys, torch
torch.set_num_threads(1)
from nnunetv2.run.run_training import run_training
dataset, configuration, fold, trainer, plans = sys.argv[1:]
run_training(dataset, configuration, fold, trainer, plans, device=torch.device("cpu"))
print("Peak memory:", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024, "MiB")
"""
CONFIGS = Path(__file__).parents[1] / "configs"
AXES = ("students", "budgets", "cases", "arms", "seeds")


def cells(grid: dict[str, Any]) -> list[dict[str, Any]]:
    """Every combination of the grid's axes, seeds outermost, so that stopping early leaves complete comparisons."""
    order = ("seeds", "cases", "students", "budgets", "arms")
    return [dict(zip(order, combination, strict=True)) for combination in itertools.product(*(grid[a] for a in order))]


def folder_of(cell: dict[str, Any], output: Path) -> Path:
    return output / "__".join(re.sub(r"\W+", "-", str(cell[axis])) for axis in AXES)


def options_of(cell: dict[str, Any], grid: dict[str, Any]) -> dict[str, Any]:
    """The options of the grid, overridden by the budget's, then by those of the arm's recipe in configs/,
    then the arm's."""
    arm = {key: value for key, value in grid["arms"][cell["arms"]].items() if key not in ("trainer", "recipe")}
    recipe = grid["arms"][cell["arms"]].get("recipe")
    from_recipe = yaml.safe_load((CONFIGS / f"{recipe}.yaml").read_text()) if recipe else {}
    options = {**grid["options"], **grid["budgets"][cell["budgets"]], **from_recipe, **arm, "seed": cell["seeds"]}
    return {key: value for key, value in options.items() if value is not None}


def run_cell(cell: dict[str, Any], grid: dict[str, Any], output: Path) -> None:
    folder = folder_of(cell, output)
    if summary_file(cell, grid, output) is not None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    options = folder / "options.yaml"
    options.write_text(yaml.safe_dump(options_of(cell, grid), sort_keys=False))
    arguments = [str(grid["dataset"]), grid["configuration"], str(grid["cases"][cell["cases"]])]
    arguments += [grid["arms"][cell["arms"]]["trainer"], grid["students"][cell["students"]]]
    env = os.environ | {
        "nnUNet_results": str(folder),
        "nnUNet_kd_config": str(options),
        "nnUNet_n_proc_DA": "0",
        "nnUNet_def_n_proc": "1",
        "OMP_NUM_THREADS": "1",
    }
    started = time.perf_counter()
    with (folder / "log.txt").open("w") as log:
        done = subprocess.run([sys.executable, "-c", RUN, *arguments], env=env, stdout=log, stderr=subprocess.STDOUT)
    minutes = (time.perf_counter() - started) / 60
    print(f"{folder.name}: {'done' if done.returncode == 0 else 'FAILED'} in {minutes:.1f} min", flush=True)


def summary_file(cell: dict[str, Any], grid: dict[str, Any], output: Path) -> Path | None:
    fold = grid["cases"][cell["cases"]]
    return next(folder_of(cell, output).glob(f"*/*/fold_{fold}/validation/summary.json"), None)


def dice_of(cell: dict[str, Any], grid: dict[str, Any], output: Path) -> float:
    """Mean foreground Dice of nnU-Net's validation; nan if the run failed or does not exist."""
    file = summary_file(cell, grid, output)
    return float("nan") if file is None else json.loads(file.read_text())["foreground_mean"]["Dice"]


def rows_of(grid: dict[str, Any], output: Path) -> list[list[str]]:
    """One row per student, budget and cases: for every arm the mean and every seed; "-" where a run is missing."""
    rows = []
    for student, cases, budget in itertools.product(grid["students"], grid["cases"], grid["budgets"]):
        row = [student, cases, budget]
        for arm in grid["arms"]:
            cell = {"students": student, "budgets": budget, "cases": cases, "arms": arm}
            dice = [dice_of({**cell, "seeds": seed}, grid, output) for seed in grid["seeds"]]
            finished = [d for d in dice if not np.isnan(d)]
            mean = f"{np.mean(finished):.3f}" if finished else "-"
            row.append(f"{mean} ({' '.join('-' if np.isnan(d) else f'{d:.3f}' for d in dice)})")
        if any("0." in cell for cell in row[3:]):
            rows.append(row)
    return rows


def details_of(grid: dict[str, Any], output: Path) -> list[list[str]]:
    """One row per arm that was run: Dice, seconds per epoch, peak memory, and every term's first and last epoch."""
    rows = []
    for cell in cells(grid):
        log = folder_of(cell, output) / "log.txt"
        if summary_file(cell, grid, output) is None or not log.is_file():
            continue
        text = log.read_text()
        epochs = sorted(float(t) for t in re.findall(r"Epoch time: ([\d.]+) s", text))
        memory = re.search(r"Peak memory: (\d+ MiB)", text)
        of_cell = [str(cell[axis]) for axis in ("students", "budgets", "arms", "seeds")]
        dice = f"{dice_of(cell, grid, output):.3f}"
        seconds = f"{epochs[len(epochs) // 4]:.1f}" if epochs else "-"
        rows.append([*of_cell, dice, seconds, memory[1] if memory else "-", ", ".join(term_falls(cell, output)) or "-"])
    return rows


def term_falls(cell: dict[str, Any], output: Path) -> list[str]:
    """``voxel_kl 0.52 → 0.11`` for every term of a run."""
    file = next(folder_of(cell, output).glob("*/*/fold_*/kd_progress.csv"), None)
    if file is None:
        return []
    with file.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    terms = [name.removesuffix("_weighted") for name in rows[0] if name.endswith("_weighted")]
    return [f"{name} {float(rows[0][name]):.3g} → {float(rows[-1][name]):.3g}" for name in terms]


def header_of(grid: dict[str, Any]) -> list[str]:
    return ["student", "training cases", "budget", *grid["arms"]]


def markdown_of(header: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in [header, ["---"] * len(header), *rows])


def table_of(header: list[str], rows: list[list[str]]) -> Table:
    table = Table(*header, title="mean validation Dice")
    for row in rows:
        table.add_row(*row)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("grid", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--jobs", type=int, default=1, help="parallel runs, one thread each")
    parser.add_argument("--only", default="", help="run only the cells whose folder name matches this pattern")
    parser.add_argument("--table", action="store_true", help="only print the table of finished runs")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    parser.add_argument(
        "--details", action="store_true", help="per run: seconds per epoch (lower quartile), memory, terms"
    )
    args = parser.parse_args()
    grid = yaml.safe_load(args.grid.read_text())
    if not args.table:
        chosen = [c for c in cells(grid) if re.search(args.only, folder_of(c, args.output).name)]
        with ThreadPoolExecutor(args.jobs) as pool:
            list(pool.map(lambda cell: run_cell(cell, grid, args.output.absolute()), chosen))
    header, rows = header_of(grid), rows_of(grid, args.output.absolute())
    if args.details:
        header = ["student", "budget", "arm", "seed", "Dice", "s per epoch", "memory", "terms, first and last epoch"]
        rows = details_of(grid, args.output.absolute())
    if args.markdown:
        print(markdown_of(header, rows))
    else:
        Console(width=200).print(table_of(header, rows))


if __name__ == "__main__":
    main()
