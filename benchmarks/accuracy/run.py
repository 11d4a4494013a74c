"""Run the trainings of a study that have no result yet, one after the other, through nnU-Net's own training function.

A study is a YAML file: datasets, budgets, arms and seeds. Each combination is a training; each finished
training becomes one JSON file in results/STUDY/. A killed training goes on from its checkpoint. Run prepare.py first.

    python benchmarks/accuracy/run.py benchmarks/accuracy/studies/optimizer.yaml --work FOLDER
"""

import argparse
import itertools
import json
import math
import os
import re
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml
from nnunetv2.paths import nnUNet_preprocessed

from nnunetv2_kd.leaderboard.scores import score, validation_jobs
from nnunetv2_kd.nnunet.trained_models import read_model

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
RUN = """
import sys, torch
torch.set_num_threads(1)
from nnunetv2.run.run_training import run_training
dataset, configuration, fold, trainer, plans, resumed = sys.argv[1:]
if __name__ == "__main__":
    run_training(dataset, configuration, fold, trainer, plans, device=torch.device("cpu"),
                 continue_training=resumed == "True")
"""
OF_DATA = ("id", "fold", "plans", "teacher", "teacher_fold")  # keys of its dataset that an arm may override
ENVIRONMENT = {
    "nnUNet_n_proc_DA": "0",  # batches depend only on the seed
    "nnUNet_def_n_proc": "1",
    "OMP_NUM_THREADS": "1",
    "MALLOC_MMAP_MAX_": "0",  # keep freed memory, see docs/speed.md
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "nnUNet_extTrainer": str(ROOT / "benchmarks" / "trainers"),
}


def cells(study: dict[str, Any]) -> list[dict[str, Any]]:
    """Every training of a study, seeds outermost, so that stopping early leaves complete comparisons."""
    axes = itertools.product(study["seeds"], study["datasets"], study["budgets"], study["arms"])
    return [{"seed": s, "dataset": d, "budget": b, "arm": a} for s, d, b, a in axes]


def name_of(cell: dict[str, Any]) -> str:
    parts = [re.sub(r"\W+", "-", str(cell[key])).strip("-") for key in ("dataset", "budget", "arm")]
    return "__".join([*parts, f"seed{cell['seed']}"])


def options_of(study: dict[str, Any], cell: dict[str, Any]) -> dict[str, Any]:
    """The study's options, overridden by the budget's, then by the arm's. Keys that an arm sets to null are left
    out."""
    arm = {key: value for key, value in study["arms"][cell["arm"]].items() if key not in ("trainer", *OF_DATA)}
    options = {**study["options"], **study["budgets"][cell["budget"]], **arm, "seed": cell["seed"]}
    return {key: value for key, value in options.items() if value is not None}


def train(study: dict[str, Any], cell: dict[str, Any], work: Path, results: Path) -> None:
    """One training and its JSON file."""
    data, arm = study["datasets"][cell["dataset"]], study["arms"][cell["arm"]]
    data = data | {key: arm[key] for key in OF_DATA if key in arm}
    folder = work / study["name"] / name_of(cell)
    folder.mkdir(parents=True, exist_ok=True)
    options = options_of(study, cell)
    given = dict(options)
    if "teacher" in data and arm["trainer"] != "nnUNetTrainerKDBaseline" and "stored_teacher" not in given:
        names = [data["teacher"]] if isinstance(data["teacher"], str) else data["teacher"]
        named = [{"folder": str(teacher_folder(work, name)), "fold": data["teacher_fold"]} for name in names]
        given |= {"teacher": named[0]} if len(named) == 1 else {"teachers": named}
    file = folder / "options.yaml"
    file.write_text(yaml.safe_dump(given, sort_keys=False))
    resumed = next(folder.glob("*/*/fold_*/checkpoint_latest.pth"), None) is not None
    command = [data["id"], data["configuration"], data["fold"], arm["trainer"], data["plans"], resumed]
    env = os.environ | ENVIRONMENT | {"nnUNet_results": str(folder), "nnUNet_kd_config": str(file)}
    started, used = time.perf_counter(), processor_minutes()
    with (folder / "log.txt").open("a") as log:
        done = subprocess.run(
            [sys.executable, "-c", RUN, *map(str, command)], env=env, stdout=log, stderr=subprocess.STDOUT
        )
    minutes = (time.perf_counter() - started) / 60
    print(f"{name_of(cell)}: {'done' if done.returncode == 0 else 'FAILED'} in {minutes:.1f} min", flush=True)
    if done.returncode == 0:
        result = result_of(study, cell, options, data, next(folder.glob("*/*/fold_*")))
        # not known if the training was killed and resumed
        result |= {"processor_minutes": None if resumed else round(processor_minutes() - used, 2)}
        results.mkdir(parents=True, exist_ok=True)
        written = json.dumps(result, indent=1).replace(f"{work}/", "")  # no folder of this machine
        (results / f"{name_of(cell)}.json").write_text(written + "\n")


def processor_minutes() -> float:
    """Processor time of all ended child processes and of theirs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (used.ru_utime + used.ru_stime) / 60


def teacher_folder(work: Path, name: str) -> Path:
    """The model folder of a training of the study ``teachers``."""
    found = next((work / "teachers" / name).glob("*/*/fold_*/checkpoint_final.pth"), None)
    if found is None:
        raise SystemExit(f"The teacher {name} is not trained yet: run studies/teachers.yaml first.")
    return found.parents[1]


def result_of(
    study: dict[str, Any], cell: dict[str, Any], options: dict[str, Any], data: dict[str, Any], fold_folder: Path
) -> dict[str, Any]:
    """The result of a training, as stored in its JSON file."""
    record = json.loads((fold_folder / "kd_record.json").read_text())
    summary = json.loads((fold_folder / "validation" / "summary.json").read_text())
    labels = {str(v): k for k, v in json.loads((fold_folder.parent / "dataset.json").read_text())["labels"].items()}
    log = "\n".join(file.read_text() for file in sorted(fold_folder.glob("training_log_*.txt")))
    seconds = sorted(float(s) for s in re.findall(r"Epoch time: ([\d.]+) s", log))
    per_case = {
        Path(case["reference_file"]).name.split(".")[0]: {
            labels[label]: rounded(scores["Dice"]) for label, scores in case["metrics"].items()
        }
        for case in summary["metric_per_case"]
    }
    return {
        "study": study["name"],
        **cell,
        "fold": data["fold"],
        "plans": data["plans"],
        "teacher": data.get("teacher") if record["teachers"] else None,
        "options": options,
        "training": record["training"],
        "student": record["student"],
        "dice": rounded(summary["foreground_mean"]["Dice"]),
        "nsd_per_structure": surface_dice(fold_folder),
        "dice_per_structure": {labels[label]: rounded(scores["Dice"]) for label, scores in summary["mean"].items()},
        "iterations": record["training"]["epochs"] * record["training"]["iterations_per_epoch"],
        "minutes": round(sum(seconds) / 60, 2),
        "seconds_per_epoch": seconds[len(seconds) // 4],
        "commit": subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.strip(),
        "dice_per_case": per_case,
    }


def surface_dice(fold_folder: Path) -> dict[str, float | None]:
    """Normalised surface Dice of every structure, tolerance 1 mm, mean over the validation cases; the leaderboard's."""
    truths = Path(str(nnUNet_preprocessed)) / fold_folder.parents[1].name / "gt_segmentations"
    model = read_model(fold_folder.parent, [fold_folder.name.removeprefix("fold_")])
    jobs, missing, problems = validation_jobs(model, truths, (), tolerance=1.0)
    if missing or problems:
        raise SystemExit(f"{fold_folder}: {missing or problems}")
    rows = [row for job in jobs for row in score(job)]
    names = dict.fromkeys(row["structure"] for row in rows)
    values = {name: [r["nsd"] for r in rows if r["structure"] == name and not math.isnan(r["nsd"])] for name in names}
    return {name: rounded(sum(found) / len(found)) if found else None for name, found in values.items()}


def rounded(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", type=Path, nargs="+", help="YAML files, run one after the other")
    parser.add_argument("--work", type=Path, required=True, help="where the trained models go; kept for resuming")
    parser.add_argument("--results", type=Path, default=HERE / "results", help="where the JSON files go")
    parser.add_argument("--only", default="", help="run only the trainings whose name matches this pattern")
    args = parser.parse_args()
    for file in args.studies:
        study = yaml.safe_load(file.read_text()) | {"name": file.stem}
        for cell in cells(study):
            results = args.results / study["name"]
            if re.search(args.only, name_of(cell)) and not (results / f"{name_of(cell)}.json").is_file():
                train(study, cell, args.work.absolute(), results)


if __name__ == "__main__":
    main()
