"""Rebuild the tables and the figure of docs/results.md from the JSON files in results/.

A table stands between ``<!-- table NAME -->`` and ``<!-- end -->``; the rest of the page is left as it is.

    python benchmarks/accuracy/report.py            # or: make results
    python benchmarks/accuracy/report.py --check    # say whether the page is what the files say
"""

import argparse
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from scipy.stats import wilcoxon

from nnunetv2_kd.leaderboard.equal_arms import unequal
from nnunetv2_kd.record import TrainingRecord

mpl.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PAGES = [ROOT / "docs" / "results.md", ROOT / "README.md"]
FIGURE = ROOT / "docs" / "dice.png"
SGD, ALONE = "SGD 0.01 (nnU-Net's)", "AdamW 0.01"
PLACE = re.compile(r"(<!-- table (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)

Runs = list[dict[str, Any]]


def read_runs(results: Path = HERE / "results") -> Runs:
    return [json.loads(file.read_text()) for file in sorted(results.glob("*/*.json"))]


def chosen(runs: Runs, **wanted: Any) -> Runs:
    """Runs with these values, by seed."""
    return sorted((r for r in runs if all(r[key] == value for key, value in wanted.items())), key=lambda r: r["seed"])


def seeds_cell(runs: Runs, structure: str | None = None) -> str:
    """``mean (seed 0 seed 1 ...)``; "-" where nothing was run."""
    dice = [dice_of(run, structure) for run in runs]
    return f"{np.mean(dice):.3f} ({' '.join(f'{d:.3f}' for d in dice)})" if dice else "-"


def dice_of(run: dict[str, Any], structure: str | None = None) -> float:
    value = run["dice"] if structure is None else run["dice_per_structure"][structure]
    return 0.0 if value is None else value


def per_case(runs: Runs) -> dict[str, float]:
    """Dice of every case: mean over its structures, then over the runs. A structure that is in neither segmentation has
    none."""
    cases: dict[str, list[float]] = {}
    for run in runs:
        for case, of_structures in run["dice_per_case"].items():
            known = [d for d in of_structures.values() if d is not None]
            if known:
                cases.setdefault(case, []).append(float(np.mean(known)))
    return {case: float(np.mean(values)) for case, values in cases.items()}


def difference_cell(runs: Runs, reference: Runs) -> str:
    """Difference of the means over the seeds that both have, whether it is beyond the seeds' spread, and the p of a
    signed-rank test over cases."""
    shared = {r["seed"] for r in runs} & {r["seed"] for r in reference}
    mine, others = ([r for r in group if r["seed"] in shared] for group in (runs, reference))
    if not mine:
        return "-"
    dice, before = ([dice_of(r) for r in group] for group in (mine, others))
    beyond = len(shared) > 1 and (min(dice) > max(before) or max(dice) < min(before))
    a, b = per_case(mine), per_case(others)
    cases = sorted(a.keys() & b.keys())
    differences = [a[case] - b[case] for case in cases]
    p = f"{wilcoxon(differences).pvalue:.2g}" if any(differences) else "1"
    mark = ", beyond the spread" if beyond else ""
    return f"{np.mean(dice) - np.mean(before):+.3f} (p {p}{mark})"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in [header, ["---"] * len(header), *rows])


def in_order(runs: Runs, key: str) -> list[Any]:
    """The values of a key, as the studies name them first."""
    return list(dict.fromkeys(run[key] for run in runs))


def arms_of(runs: Runs, first: Sequence[str]) -> list[str]:
    return sorted(in_order(runs, "arm"), key=lambda arm: (first.index(arm) if arm in first else len(first), arm))


def optimizer_table(runs: Runs) -> str:
    """Study 1: one row per arm."""
    study = chosen(runs, study="optimizer")
    datasets = sorted(in_order(study, "dataset"))
    rows = []
    for arm in arms_of(study, (SGD, "SGD 0.01, loss times three", "AdamW 0.003", ALONE)):
        row = [arm]
        for dataset in datasets:
            mine, reference = (chosen(study, arm=a, dataset=dataset) for a in (arm, SGD))
            row += [seeds_cell(mine), "" if arm == SGD else difference_cell(mine, reference)]
        rows.append(row)
    header = ["student alone, 1000 iterations"]
    for dataset in datasets:
        header += [dataset, "against SGD"]
    return markdown(header, rows)


def longer_table(runs: Runs) -> str:
    """Study 3: budgets by optimizer."""
    study = [*chosen(runs, study="optimizer"), *chosen(runs, study="longer")]
    rows = []
    for dataset in sorted(in_order(study, "dataset")):
        for budget in sorted(in_order(study, "budget"), key=lambda b: int(b.split()[0])):
            both = [chosen(study, dataset=dataset, budget=budget, arm=arm) for arm in (SGD, ALONE)]
            if any(both):
                rows.append([dataset, budget, *map(seeds_cell, both)])
    return markdown(["student alone", "budget", SGD, ALONE], rows)


def taught_table(runs: Runs) -> str:
    """Study 2: one row per arm, against the student alone."""
    study, alone = chosen(runs, study="same_cases"), chosen(runs, study="optimizer", arm=ALONE)
    datasets = sorted(in_order(study, "dataset"))
    rows = [["student alone"], *([arm] for arm in arms_of(study, ("RegionKD as it is",)))]
    for row in rows:
        for dataset in datasets:
            reference = chosen(alone, dataset=dataset)
            mine = reference if row[0] == "student alone" else chosen(study, dataset=dataset, arm=row[0])
            row += [seeds_cell(mine), "" if mine is reference else difference_cell(mine, reference), minutes_cell(mine)]
    teachers = ["teacher, 2500 iterations"]
    for dataset in datasets:
        own = chosen(runs, study="teachers", dataset=dataset)
        teachers += [seeds_cell(own), "", minutes_cell(own)]
    header = ["AdamW 0.01, 1000 iterations"]
    for dataset in datasets:
        header += [dataset, "against alone", "minutes"]
    return f"{markdown(header, [teachers, *rows])}\n\n{equality(study, alone)}"


def equality(runs: Runs, reference: Runs) -> str:
    """Whether every training had the conditions of the student alone on the same data set, in words."""
    found = {
        f"{run['arm']}, {run['dataset']}: {difference}"
        for run in runs
        for other in reference
        if other["dataset"] == run["dataset"]
        for difference in unequal(TrainingRecord(**run["training"]), TrainingRecord(**other["training"]))
    }
    if found:
        return "Not equal to the student alone: " + "; ".join(sorted(found)) + "."
    return f"All {len(runs)} taught students were trained under the recorded conditions of the student alone."


def minutes_cell(runs: Runs) -> str:
    return f"{np.median([run['minutes'] for run in runs]):.1f}" if runs else "-"


def few_labels_table(runs: Runs) -> str:
    """Study 4: one row per arm."""
    study = chosen(runs, study="few_labels")
    if not study:
        return "Not run."
    alone = chosen(study, arm="8 labelled, alone")
    rows = []
    for arm in in_order(study, "arm"):
        mine = chosen(study, arm=arm)
        rows.append([arm, seeds_cell(mine), "" if mine[0]["arm"] == alone[0]["arm"] else difference_cell(mine, alone)])
    return markdown(["hippocampus 2d, AdamW 0.01, 1000 iterations", "Dice", "against 8 labelled, alone"], rows)


def structures_table(runs: Runs) -> str:
    """Every structure of every arm."""
    study = [r | {"arm": "teacher"} if r["study"] == "teachers" else r for r in runs if r["study"] != "longer"]
    rows = []
    for dataset in sorted(in_order(study, "dataset")):
        for arm in in_order(chosen(study, dataset=dataset), "arm"):
            mine = chosen(study, dataset=dataset, arm=arm)
            for structure in mine[0]["dice_per_structure"]:
                rows.append([dataset, arm, structure, seeds_cell(mine, structure)])
    return markdown(["data", "arm", "structure", "Dice"], rows)


def top_table(runs: Runs) -> str:
    """One row per data set and budget: the teacher, both students alone, RegionKD and the best other arm."""
    rows = []
    for dataset in sorted(in_order(chosen(runs, study="optimizer"), "dataset")):
        at = {"dataset": dataset, "budget": "1000 iterations"}
        taught = chosen(runs, study="same_cases", **at)
        others = [chosen(taught, arm=arm) for arm in in_order(taught, "arm") if arm != "RegionKD as it is"]
        best = max(others, key=lambda mine: np.mean([dice_of(r) for r in mine]), default=[])
        named = f"{seeds_cell(best)}: {best[0]['arm']}" if best else "-"
        sgd, adamw = (chosen(runs, study="optimizer", arm=arm, **at) for arm in (SGD, ALONE))
        region = chosen(taught, arm="RegionKD as it is")
        own = chosen(runs, study="teachers", dataset=dataset)
        rows.append([dataset, *map(seeds_cell, (own, sgd, adamw, region)), named])
    header = ["1/16 of the parameters, 1000 iterations", "teacher (2500)", "alone, SGD", "alone, AdamW"]
    return markdown([*header, "RegionKD, AdamW", "best other way of teaching, AdamW"], rows)


TABLES: dict[str, Callable[[Runs], str]] = {
    "top": top_table,
    "optimizer": optimizer_table,
    "longer": longer_table,
    "taught": taught_table,
    "few_labels": few_labels_table,
    "structures": structures_table,
}


def rendered(page: str, runs: Runs) -> str:
    """The page with its tables as the runs say."""
    return PLACE.sub(lambda found: f"{found[1]}{TABLES[found[2]](runs)}\n{found[3]}", page)


def draw(runs: Runs, file: Path) -> None:
    """Dice against iterations and against minutes, a point per training and a line through the means."""
    wanted = [r for r in runs if r["study"] in ("optimizer", "longer", "same_cases")]
    datasets = sorted(in_order(wanted, "dataset"))
    arms = [SGD, "AdamW 0.003", ALONE, *(a for a in in_order(chosen(runs, study="same_cases"), "arm"))]
    figure, axes = plt.subplots(len(datasets), 2, figsize=(10, 4 * len(datasets)), layout="constrained", squeeze=False)
    for row, dataset in zip(axes, datasets, strict=True):
        for axis, key in zip(row, ("iterations", "minutes"), strict=True):
            for number, arm in enumerate(arms):
                mine = chosen(wanted, dataset=dataset, arm=arm)
                by_budget = [chosen(mine, budget=b) for b in sorted({r["budget"] for r in mine}, key=budget_of)]
                axis.plot([r[key] for r in mine], [dice_of(r) for r in mine], "o", color=f"C{number}", alpha=0.4)
                means = [(np.mean([r[key] for r in g]), np.mean([dice_of(r) for r in g])) for g in by_budget]
                axis.plot(*zip(*means, strict=True), "-D", color=f"C{number}", label=arm) if means else None
            axis.set(xlabel=key if key == "iterations" else "minutes of training, one thread", ylabel="Dice")
            axis.set_title(dataset)
            axis.grid(alpha=0.3)
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    figure.savefig(file, dpi=90, metadata={"Software": None})
    plt.close(figure)


def budget_of(name: str) -> int:
    return int(name.split()[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; fail where a page is not up to date")
    args = parser.parse_args()
    runs = read_runs()
    stale = []
    for page in PAGES:
        before = page.read_text()
        after = rendered(before, runs)
        if after != before:
            stale.append(page.name)
            if not args.check:
                page.write_text(after)
    if args.check:
        raise SystemExit(f"Not as the results say: {', '.join(stale)}. Run: make results" if stale else 0)
    draw(runs, FIGURE)
    print(f"{len(runs)} trainings; changed: {', '.join(stale) or 'no table'}; {FIGURE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
