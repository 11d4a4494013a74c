"""Compare ways of training a student: every arm, size, budget and seed, through nnU-Net's own training function.

Reads a grid from a YAML file (see benchmarks/default_terms.yaml), runs what is not finished yet, and prints a table of
the mean validation Dice per cell with every seed shown. A run is what

    nnUNet_kd_config=OPTIONS nnUNetv2_train DATASET CONFIGURATION FOLD -p PLANS -tr TRAINER -device cpu

does, with one thread per run, so that as many runs as there are cores go side by side.

    python benchmarks/compare.py GRID.yaml OUTPUT_FOLDER --jobs 2
"""

import argparse
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
import sys, torch
torch.set_num_threads(1)
from nnunetv2.run.run_training import run_training
dataset, configuration, fold, trainer, plans = sys.argv[1:]
run_training(dataset, configuration, fold, trainer, plans, device=torch.device("cpu"))
"""
AXES = ("students", "budgets", "cases", "arms", "seeds")


def cells(grid: dict[str, Any]) -> list[dict[str, Any]]:
    """Every combination of the grid's axes, seeds outermost, so that an early stop leaves whole comparisons."""
    order = ("seeds", "cases", "students", "budgets", "arms")
    return [dict(zip(order, combination, strict=True)) for combination in itertools.product(*(grid[a] for a in order))]


def folder_of(cell: dict[str, Any], output: Path) -> Path:
    return output / "__".join(re.sub(r"\W+", "-", str(cell[axis])) for axis in AXES)


def options_of(cell: dict[str, Any], grid: dict[str, Any]) -> dict[str, Any]:
    arm = {key: value for key, value in grid["arms"][cell["arms"]].items() if key != "trainer"}
    return {**grid["options"], **grid["budgets"][cell["budgets"]], **arm, "seed": cell["seeds"]}


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
    """Mean foreground Dice of nnU-Net's validation; nan where the run failed or is not there."""
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


def header_of(grid: dict[str, Any]) -> list[str]:
    return ["student", "training cases", "budget", *grid["arms"]]


def markdown_of(grid: dict[str, Any], output: Path) -> str:
    lines = [header_of(grid), ["---"] * len(header_of(grid)), *rows_of(grid, output)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def table_of(grid: dict[str, Any], output: Path) -> Table:
    table = Table(*header_of(grid), title="mean validation Dice: mean (every seed)")
    for row in rows_of(grid, output):
        table.add_row(*row)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("grid", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side, one thread each")
    parser.add_argument("--only", default="", help="run only the cells whose folder name matches this pattern")
    parser.add_argument("--table", action="store_true", help="print the table of what is there, run nothing")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    args = parser.parse_args()
    grid = yaml.safe_load(args.grid.read_text())
    if not args.table:
        chosen = [c for c in cells(grid) if re.search(args.only, folder_of(c, args.output).name)]
        with ThreadPoolExecutor(args.jobs) as pool:
            list(pool.map(lambda cell: run_cell(cell, grid, args.output.absolute()), chosen))
    if args.markdown:
        print(markdown_of(grid, args.output.absolute()))
    else:
        Console(width=200).print(table_of(grid, args.output.absolute()))


if __name__ == "__main__":
    main()
