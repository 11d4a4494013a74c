"""Rebuild the tables and the figure of docs/results.md from the JSON files in results/.

A table is between ``<!-- table NAME -->`` and ``<!-- end -->``; the rest of the page is not changed.

    python benchmarks/accuracy/report.py            # or: make results
    python benchmarks/accuracy/report.py --check    # check that the page agrees with the files
"""

import argparse
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import yaml
from scipy.stats import wilcoxon

from nnunetv2_kd.formatting import format_count
from nnunetv2_kd.leaderboard.equal_arms import describe_inequalities
from nnunetv2_kd.leaderboard.statistics import gap_closed, intervals
from nnunetv2_kd.record import TrainingRecord

mpl.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PAGES = [ROOT / "docs" / "results.md", ROOT / "README.md"]
FIGURE = ROOT / "docs" / "dice.png"
SGD, ALONE = "SGD 0.01 (nnU-Net's)", "AdamW 0.01"
CHANNEL_WISE = "channel-wise KL, temperature 4, to the end"
OWN_TABLE = (
    "optimizer_settings",
    "batch_size",
    "longer",
    "sizes",
    "shapes",
    "shapes_ultrasound",
    "shapes_wider",
    "shapes_other",
    "three_dimensions",
    "teacher_optimizer",
    "three_dimensions_taught",
)  # studies of the student alone whose structures are not listed
LATER_TEACHER = "channel-wise KL, teacher of 10000 iterations"
DRAWN = (SGD, ALONE, "RegionKD as it is", CHANNEL_WISE, LATER_TEACHER)
FRAME = {"hippocampus 2d": 0.65}  # where the figure's Dice begins
NOT_RUN = "Not run."
PLACE = re.compile(r"(<!-- table (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)

Runs = list[dict[str, Any]]


def read_runs(results: Path = HERE / "results") -> Runs:
    return [json.loads(file.read_text()) for file in sorted(results.glob("*/*.json"))]


def chosen(runs: Runs, **wanted: Any) -> Runs:
    """Runs with these values, by seed."""
    return sorted((r for r in runs if all(r[key] == value for key, value in wanted.items())), key=lambda r: r["seed"])


def teachers_of(runs: Runs, dataset: str, budget: str = "2500 iterations") -> Runs:
    """The teacher of most studies; that of seed 1 joins it in study 24 only."""
    return chosen(runs, study="teachers", dataset=dataset, budget=budget, seed=0)


def seeds_cell(runs: Runs, structure: str | None = None) -> str:
    """``mean (seed 0 seed 1 ...)``; "-" if nothing was run."""
    dice = [dice_of(run, structure) for run in runs]
    return f"{np.mean(dice):.3f} ({' '.join(f'{d:.3f}' for d in dice)})" if dice else "-"


def dice_of(run: dict[str, Any], structure: str | None = None) -> float:
    value = run["dice"] if structure is None else run["dice_per_structure"][structure]
    return 0.0 if value is None else value


def per_case(runs: Runs) -> dict[str, float]:
    """Dice of every case: the mean over its structures, then over the runs. A structure that is in neither segmentation
    is left out."""
    cases: dict[str, list[float]] = {}
    for run in runs:
        for case, of_structures in run["dice_per_case"].items():
            known = [d for d in of_structures.values() if d is not None]
            if known:
                cases.setdefault(case, []).append(float(np.mean(known)))
    return {case: float(np.mean(values)) for case, values in cases.items()}


def difference_cell(runs: Runs, reference: Runs) -> str:
    """Difference of the means over the seeds that both have, whether it exceeds the spread over seeds, and p from a
    signed-rank test over cases."""
    mine, others = of_same_seeds(runs, reference)
    if not mine:
        return "-"
    dice, before = ([dice_of(r) for r in group] for group in (mine, others))
    beyond = len(mine) > 1 and (min(dice) > max(before) or max(dice) < min(before))
    a, b = per_case(mine), per_case(others)
    cases = sorted(a.keys() & b.keys())
    differences = [a[case] - b[case] for case in cases]
    p = f"{wilcoxon(differences).pvalue:.2g}" if any(differences) else "1"
    mark = ", beyond the spread" if beyond else ""
    return f"{np.mean(dice) - np.mean(before):+.3f} (p {p}{mark})"


def of_same_seeds(runs: Runs, reference: Runs) -> tuple[Runs, Runs]:
    """The trainings of the seeds that both arms have."""
    shared = {r["seed"] for r in runs} & {r["seed"] for r in reference}
    return [r for r in runs if r["seed"] in shared], [r for r in reference if r["seed"] in shared]


def surface_cell(runs: Runs) -> str:
    """Mean surface Dice over structures and seeds; the earliest trainings have none."""
    values = [v for run in runs for v in (run.get("nsd_per_structure") or {}).values() if v is not None]
    return f"{np.mean(values):.3f}" if values else "-"


def gap_cell(runs: Runs, alone: Runs, teacher: Runs) -> str:
    """Share of the gap between the student alone and the teacher, with its 95 % interval over cases; means of the seeds
    that both arms have."""
    mine, others = of_same_seeds(runs, alone)
    if not mine or not teacher:
        return "-"
    dice = np.array([mean_of_seeds(group) for group in (teacher, others, mine)])
    gap = gap_closed(0, 1, 2, intervals(dice))
    if gap.share is None:
        return "-"
    return f"{gap.share:.0%}" + ("" if gap.low is None else f" ({gap.low:.0%} to {gap.high:.0%})")


def mean_of_seeds(runs: Runs) -> np.ndarray:
    """Dice ``(cases, structures)``, the mean over seeds; nan if a structure is in neither segmentation for any seed."""
    tables = [
        [
            [np.nan if d is None else d for d in run["dice_per_case"][case].values()]
            for case in sorted(run["dice_per_case"])
        ]
        for run in runs
    ]
    return np.ma.masked_invalid(np.array(tables)).mean(axis=0).filled(np.nan)


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in [header, ["---"] * len(header), *rows])


def in_order(runs: Runs, key: str) -> list[Any]:
    """The values of a key, in the order in which they first occur in the studies."""
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


def optimizer_settings_table(runs: Runs) -> str:
    """Study 21, with AdamW 0.01 of study 1."""
    study = chosen(runs, study="optimizer_settings")
    rows = []
    for dataset in sorted(in_order(study, "dataset")):
        reference = chosen(runs, study="optimizer", dataset=dataset, arm=ALONE)
        rows += [[dataset, *row] for row in arm_rows([*reference, *chosen(study, dataset=dataset)], (ALONE,))]
    return markdown(["", "student alone, 1000 iterations", "Dice", f"against {ALONE}", "NSD", "minutes"], rows)


def batch_size_table(runs: Runs) -> str:
    """Study 21: the same number of patches in more or in fewer steps; a batch of 8 in study 1."""
    first = "batch 8, 1000 iterations"
    study = [r | {"arm": first} for r in chosen(runs, study="optimizer", dataset="hippocampus 2d", arm=ALONE)]
    for run in chosen(runs, study="batch_size"):
        study.append(run | {"arm": f"{run['dataset'].split(', ')[1]}, {run['budget']}"})
    header = ["hippocampus 2d, student alone, AdamW 0.01", "Dice", f"against {first}", "NSD", "minutes"]
    return markdown(header, arm_rows(study, (first,)))


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
    """Study 2."""
    return arms_table(runs, "same_cases", "optimizer", "1000 iterations")


def taught_longer_table(runs: Runs) -> str:
    """Study 5."""
    return arms_table(runs, "same_cases_longer", "longer", "3000 iterations")


def taught_longest_table(runs: Runs) -> str:
    """Study 19."""
    return arms_table(runs, "same_cases_longer", "longer", "6000 iterations")


def better_teacher_table(runs: Runs) -> str:
    """Study 23."""
    budgets = sorted(in_order(chosen(runs, study="better_teacher"), "budget"), key=budget_of)
    return "\n\n".join(arms_table(runs, "better_teacher", "longer", b, "10000 iterations") for b in budgets)


def arms_table(runs: Runs, name: str, of_alone: str, budget: str, of_teacher: str = "2500 iterations") -> str:
    """Per data set one row per arm, against the student alone.

    Args:
        name: of the study with the taught students.
        of_alone: of the study with the student alone.
        budget: of both.
        of_teacher: the teacher's budget.
    """
    study = chosen(runs, study=name, budget=budget)
    alone = chosen(runs, study=of_alone, arm=ALONE, budget=budget)
    if not study:
        return NOT_RUN
    rows = []
    for dataset in sorted(in_order(study, "dataset")):
        reference, teacher = chosen(alone, dataset=dataset), teachers_of(runs, dataset, of_teacher)
        rows.append([dataset, f"teacher, {of_teacher}", seeds_cell(teacher), "", "", *costs(teacher)])
        rows.append([dataset, "student alone", seeds_cell(reference), "", "", *costs(reference)])
        for arm in arms_of(chosen(study, dataset=dataset), ("RegionKD as it is",)):
            mine = chosen(study, dataset=dataset, arm=arm)
            gap = gap_cell(mine, reference, teacher)
            rows.append([dataset, arm, seeds_cell(mine), difference_cell(mine, reference), gap, *costs(mine)])
    header = [f"AdamW 0.01, {budget}", "", "Dice", "against alone", "share of the gap", "NSD", "minutes"]
    return f"{markdown(header, rows)}\n\n{equality(study, alone)}"


def costs(runs: Runs) -> list[str]:
    return [surface_cell(runs), minutes_cell(runs)]


def sizes_table(runs: Runs) -> str:
    """Study 7, with the 1/16 of study 1."""
    study = [*chosen(runs, study="optimizer"), *chosen(runs, study="sizes")]
    arms = (SGD, "AdamW 0.003", ALONE)
    rows = []
    for dataset in sorted(in_order(study, "dataset"), key=lambda name: (name.split(",")[0], -size_of(name))):
        named = dataset if "/" in dataset else f"{dataset}, 1/16"
        rows.append([named, *(seeds_cell(chosen(study, dataset=dataset, arm=arm)) for arm in arms)])
    return markdown(["student alone, 1000 iterations", *arms], rows)


def size_of(dataset: str) -> float:
    """The share of the teacher's parameters in a name such as ``ultrasound 2d, 1/64``; without it 1/16."""
    found = re.search(r"1/(\d+)", dataset)
    return 1 / int(found[1]) if found else 1 / 16


def arm_rows(study: Runs, first: Sequence[str], teacher: Runs | None = None) -> list[list[str]]:
    """One row per arm: Dice, difference to the first arm, share of the gap where a teacher is given, costs.

    Args:
        study: of one data set and budget.
        first: arms to list first, beginning with the one to compare with.
        teacher: the teacher whose gap to the student alone is measured.
    """
    reference = chosen(study, arm=first[0])
    rows = []
    for arm in arms_of(study, first):
        mine = chosen(study, arm=arm)
        is_other = arm != first[0]
        gap = [] if teacher is None else [gap_cell(mine, reference, teacher) if is_other else ""]
        rows.append([arm, seeds_cell(mine), difference_cell(mine, reference) if is_other else "", *gap, *costs(mine)])
    return rows


def other_fold_table(runs: Runs) -> str:
    """Study 8."""
    study = chosen(runs, study="other_fold")
    [dataset] = in_order(study, "dataset")
    teacher = teachers_of(runs, dataset)
    rows = [["teacher, 2500 iterations", seeds_cell(teacher), "", "", *costs(teacher)]]
    rows += arm_rows(study, (ALONE, "RegionKD as it is"), teacher)
    header = [f"{dataset}, 3000 iterations", "Dice", f"against {ALONE}", "share of the gap", "NSD", "minutes"]
    return markdown(header, rows)


def shapes_table(runs: Runs) -> str:
    """Study 9."""
    plain = [r | {"arm": "2-4-8-16-32-32, two convolutions"} for r in chosen(runs, study="optimizer", arm=ALONE)]
    tables = []
    for name, dataset, before in (("shapes", "hippocampus 2d", []), ("shapes_ultrasound", "ultrasound 2d", plain)):
        study = [*chosen(before, dataset=dataset), *chosen(runs, study=name)]
        first = "4-8-16-32, two convolutions" if name == "shapes" else before[0]["arm"]
        sizes = sizes_of(dataset)
        rows = [[*row, *sizes[chosen(study, arm=row[0])[0]["plans"]]] for row in arm_rows(study, (first,))]
        header = [f"{dataset}, student alone, 1000 iterations", "Dice", f"against {first}", "NSD", "minutes"]
        tables.append(markdown([*header, "parameters", "ms per case"], rows))
    return "\n\n".join(tables)


def shapes_wider_table(runs: Runs) -> str:
    """Study 27: per size the plain shape, then the wider ones; milliseconds from wider_shapes.py."""
    study = chosen(runs, study="shapes_wider")
    timed = json.loads((HERE / "latency" / "wider-shapes.json").read_text())
    rows = []
    for dataset in sorted(in_order(study, "dataset")):
        sizes = {"-".join(map(str, shape["features"])): shape for shape in timed[dataset]}
        mine = chosen(study, dataset=dataset)
        plain = [arm for arm in in_order(mine, "arm") if arm.endswith("two convolutions")]
        if not plain:  # run for study 29 only
            continue
        for row in arm_rows([run for run in mine if not run["arm"].endswith("SGD")], (plain[0],)):
            size = sizes[row[0].split(", ")[0]]
            rows.append([dataset, *row, format_count(size["parameters"]), f"{size['ms_per_patch']:.2f}"])
    header = ["student alone, 1000 iterations", "", "Dice", "against the plain shape", "NSD", "minutes"]
    return markdown([*header, "parameters", "ms per patch"], rows)


def shape_optimizer_table(runs: Runs) -> str:
    """Study 29: shapes of more than 500 k parameters, trained by SGD and by AdamW."""
    study = chosen(runs, study="shapes_wider")
    rows = []
    for arm in sorted(arm for arm in in_order(study, "arm") if arm.endswith(", SGD")):
        [dataset] = {run["dataset"] for run in chosen(study, arm=arm)}
        both = [run for run in study if run["arm"] in (arm, arm.removesuffix(", SGD")) and run["dataset"] == dataset]
        rows += [[dataset, *row] for row in arm_rows(both, (arm,))]
    return markdown(["student alone, 1000 iterations", "", "Dice", "against SGD", "NSD", "minutes"], rows)


def shapes_other_table(runs: Runs) -> str:
    """Study 28, with the plain sixteenth of study 9."""
    first = "4-8-16-32, two convolutions"
    study = [*chosen(runs, study="shapes", arm=first), *chosen(runs, study="shapes_other")]
    header = ["hippocampus 2d, student alone, 1000 iterations", "Dice", f"against {first}", "NSD", "minutes"]
    return markdown(header, arm_rows(study, (first,)))


def sizes_of(dataset: str) -> dict[str, list[str]]:
    """Parameters and milliseconds per case in OpenVINO, by plans: from ``nnUNetv2_kd benchmark --json`` of the trained
    models (``--runtime openvino --precision f32``, five cases, one thread), without their folders."""
    measured = json.loads((HERE / "latency" / f"{dataset.replace(' ', '-')}.json").read_text())
    return {
        model["model"].split("__")[1]: [format_count(model["params"]), f"{model['ms_per_case']:.0f}"]
        for model in measured["models"]
        if model["runtime"] == "openvino"
    }


def equality(runs: Runs, reference: Runs) -> str:
    """Whether every training had the same conditions as the student alone on the same dataset, in words."""
    found = {
        f"{run['arm']}, {run['dataset']}: {difference}"
        for run in runs
        for other in reference
        if other["dataset"] == run["dataset"]
        for difference in describe_inequalities(TrainingRecord(**run["training"]), TrainingRecord(**other["training"]))
    }
    if found:
        return "Not equal to the student alone: " + "; ".join(sorted(found)) + "."
    return f"All {len(runs)} taught students were trained under the recorded conditions of the student alone."


def minutes_cell(runs: Runs) -> str:
    """Median minutes of the training epochs, and the processor minutes of the whole training, if measured."""
    if not runs:
        return "-"
    used = [run["processor_minutes"] for run in runs if run.get("processor_minutes") is not None]
    processor = f", processor {np.median(used):.1f}" if used else ""
    return f"{np.median([run['minutes'] for run in runs]):.1f}{processor}"


def few_labels_table(runs: Runs) -> str:
    """Study 4: one row per arm and budget."""
    first = ("8 labelled, alone", "8 labelled, RegionKD", "8 labelled and 32 by the teacher, alone")
    return by_budget(chosen(runs, study="few_labels"), first, [])


def unlabelled_table(runs: Runs) -> str:
    """Studies 10 and 11: one row per arm and budget."""
    study = chosen(runs, study="unlabelled")
    rows = []
    for name in ("12 labelled", "all"):
        dataset = "hippocampus 2d" if name == "all" else f"hippocampus 2d, {name}"
        teacher = teachers_of(runs, dataset)
        rows.append(["2500 iterations", f"teacher of {name}", seeds_cell(teacher), "", *costs(teacher)])
    return by_budget(study, ("12 labelled, alone",), rows)


def no_labels_table(runs: Runs) -> str:
    """Study 12."""
    study, first = chosen(runs, study="no_labels"), "40 labelled, alone"
    teacher = teachers_of(runs, "hippocampus 2d, 120 others")
    alone = chosen(runs, study="few_labels", budget="3000 iterations", arm=first)
    rows = [["2500 iterations", "teacher of 120 others", seeds_cell(teacher), "", *costs(teacher)]]
    return by_budget([*study, *alone], (first,), rows)


def noisy_labels_table(runs: Runs) -> str:
    """Study 13."""
    return by_budget(chosen(runs, study="noisy_labels"), (ALONE,), [])


def teacher_use_table(runs: Runs) -> str:
    """Study 14."""
    return against_channel_wise(runs, "teacher_use")


def other_methods_table(runs: Runs) -> str:
    """Study 22."""
    return against_channel_wise(runs, "other_methods")


def ensemble_table(runs: Runs) -> str:
    """Study 24."""
    return against_channel_wise(runs, "ensemble")


def no_loss_table(runs: Runs) -> str:
    """Study 26."""
    return against_channel_wise(runs, "no_loss")


def against_channel_wise(runs: Runs, study: str) -> str:
    """A study of hippocampus in 3000 iterations, with channel-wise KL of study 5."""
    reference = chosen(
        runs, study="same_cases_longer", dataset="hippocampus 2d", budget="3000 iterations", arm=CHANNEL_WISE
    )
    return by_budget([*chosen(runs, study=study), *reference], (CHANNEL_WISE,), [])


def region_terms_table(runs: Runs) -> str:
    """Study 25, with the student alone of study 1 and the students of study 2."""
    taught = [r for r in chosen(runs, study="same_cases") if r["arm"] in ("RegionKD as it is", CHANNEL_WISE)]
    study = [*chosen(runs, study="optimizer", arm=ALONE), *taught, *chosen(runs, study="region_terms")]
    first = (ALONE, "RegionKD as it is", CHANNEL_WISE)
    rows = arm_rows([run for run in study if run["dataset"] == "hippocampus 2d"], first)
    return markdown(["hippocampus 2d, AdamW 0.01, 1000 iterations", "Dice", "against alone", "NSD", "minutes"], rows)


def region_default_table(runs: Runs) -> str:
    """Study 16: everything that was taught by the same teacher, against RegionKD as it is."""
    studies = ("optimizer", "longer", "same_cases", "same_cases_longer", "region_default")
    new = {(run["dataset"], run["budget"]) for run in chosen(runs, study="region_default")}
    rows = []
    for dataset, budget in sorted(new, key=lambda both: (both[0], budget_of(both[1]))):
        here = [r for r in runs if r["study"] in studies and (r["dataset"], r["budget"]) == (dataset, budget)]
        here = [run for run in here if run["teacher"] or run["arm"] == ALONE]
        rows += [[f"{dataset}, {budget}", *row] for row in arm_rows(here, ("RegionKD as it is", ALONE))]
    return markdown(["", "AdamW 0.01", "Dice", "against RegionKD as it is", "NSD", "minutes"], rows)


def teacher_optimizer_table(runs: Runs) -> str:
    """Study 17."""
    used = [*chosen(runs, study="teacher_optimizer"), *teachers_of(runs, "hippocampus 2d")]
    rows = [
        [arm, budget, seeds_cell(mine), *costs(mine)]
        for arm in arms_of(used, (SGD, "AdamW 0.003", ALONE))
        for budget in sorted(in_order(used, "budget"), key=budget_of)
        if (mine := chosen(used, arm=arm, budget=budget))
    ]
    return markdown(["teacher, hippocampus 2d", "", "Dice", "NSD", "minutes"], rows)


def shape_taught_table(runs: Runs) -> str:
    """Study 18, with the plain sixteenth."""
    study = chosen(runs, study="shape_taught")
    teacher = teachers_of(runs, "hippocampus 2d")
    plain = [
        *chosen(runs, study="longer", dataset="hippocampus 2d", budget="3000 iterations", arm=ALONE),
        *chosen(
            runs,
            study="same_cases_longer",
            dataset="hippocampus 2d",
            budget="3000 iterations",
            arm=CHANNEL_WISE,
        ),
    ]
    rows = []
    for name, mine in (("4-8-16-32, two convolutions", plain), ("8-16-32-64, one convolution", study)):
        rows += [[name, *row] for row in arm_rows(mine, (ALONE,), teacher)]
    header = ["hippocampus 2d, 3000 iterations", "", "Dice", f"against {ALONE}", "share of the gap", "NSD", "minutes"]
    return markdown(header, rows)


def three_dimensions_table(runs: Runs) -> str:
    """Study 15."""
    study = chosen(runs, study="three_dimensions")
    header = ["hippocampus 3d, student alone, 500 iterations", "Dice", "against SGD", "NSD", "minutes"]
    return markdown(header, arm_rows(study, (SGD, "AdamW 0.003", ALONE)))


def three_dimensions_taught_table(runs: Runs) -> str:
    """Study 20. The teacher is the demo's, which no study trains; its Dice here is that of docs/results.md."""
    study = chosen(runs, study="three_dimensions_taught")
    header = ["hippocampus 3d, 500 iterations", "Dice", f"against {ALONE}", "NSD", "minutes"]
    return markdown(header, arm_rows(study, (ALONE, "RegionKD as it is")))


def by_budget(study: Runs, first: Sequence[str], rows: list[list[str]]) -> str:
    """A table of these rows, followed by every budget's arms, each compared with its first arm."""
    for budget in sorted(in_order(study, "budget"), key=budget_of):
        rows = [*rows, *([budget, *row] for row in arm_rows(chosen(study, budget=budget), first))]
    return markdown(["hippocampus 2d, AdamW 0.01", "", "Dice", f"against {first[0]}", "NSD", "minutes"], rows)


def structures_table(runs: Runs) -> str:
    """Every structure of every arm."""
    study = [r | {"arm": "teacher"} if r["study"] == "teachers" else r for r in runs if r["study"] not in OWN_TABLE]
    rows = []
    for dataset in sorted(in_order(study, "dataset")):
        for budget in sorted(in_order(chosen(study, dataset=dataset), "budget"), key=budget_of):
            for arm in in_order(chosen(study, dataset=dataset, budget=budget), "arm"):
                mine = chosen(study, dataset=dataset, budget=budget, arm=arm)
                for structure in mine[0]["dice_per_structure"]:
                    rows.append([dataset, budget, arm, structure, seeds_cell(mine, structure)])
    return markdown(["data", "budget", "arm", "structure", "Dice"], rows)


def top_table(runs: Runs) -> str:
    """One row per situation and budget: the teacher, both students alone, RegionKD and the best other arm."""
    rows = []
    for dataset in sorted(in_order(chosen(runs, study="optimizer"), "dataset")):
        for budget, of_alone, name, of_teacher in (
            ("1000 iterations", "optimizer", "same_cases", "2500 iterations"),
            ("3000 iterations", "longer", "same_cases_longer", "2500 iterations"),
            ("6000 iterations", "longer", "same_cases_longer", "2500 iterations"),
            ("6000 iterations", "longer", "better_teacher", "10000 iterations"),
            ("12000 iterations", "longer", "better_teacher", "10000 iterations"),
        ):
            alone, taught = (chosen(runs, study=s, dataset=dataset, budget=budget) for s in (of_alone, name))
            if alone and taught:
                trained = "" if of_teacher == "2500 iterations" else f" of {of_teacher}"
                named = f"{dataset}, the same labels as the teacher{trained}, {budget}"
                rows.append(situation(named, teachers_of(runs, dataset, of_teacher), alone, ALONE, taught))
    rows += other_situations(runs)
    header = ["1/16 of the parameters", "teacher", "alone, SGD", "alone, AdamW", "RegionKD, AdamW"]
    return markdown([*header, "best other way of teaching, AdamW"], rows)


def other_situations(runs: Runs) -> list[list[str]]:
    """Rows of the first table in which something else than the budget differs from the first rows."""
    others = teachers_of(runs, "hippocampus 2d, 120 others")
    dozen = teachers_of(runs, "hippocampus 2d, 12 labelled")
    clean = teachers_of(runs, "hippocampus 2d")
    fold_1 = teachers_of(runs, "hippocampus 2d, fold 1")
    of_dozen = "12 labelled, RegionKD by the teacher of the 12"
    wanted = [  # name, teacher, study, its budget, arm alone, arm of RegionKD, what the arms that are left out contain
        ("fold 1, the same labels", fold_1, "other_fold", 3000, ALONE, "RegionKD as it is", ""),
        ("a tenth of the labels wrong", clean, "noisy_labels", 1500, ALONE, "RegionKD as it is", ""),
        ("8 labels (teacher: 120)", others, "few_labels", 3000, "8 labelled, alone", "8 labelled, RegionKD", "40"),
        ("no label (teacher: 120)", others, "no_labels", 3000, "", "", ""),
        ("12 labels (teacher: the same)", dozen, "unlabelled", 1500, "12 labelled, alone", of_dozen, "of all"),
        ("12 labels (teacher: the same)", dozen, "unlabelled", 6000, "12 labelled, alone", of_dozen, "of all"),
    ]
    rows = []
    for name, teacher, study, iterations, arm_alone, region, left_out in wanted:
        mine = chosen(runs, study=study, budget=f"{iterations} iterations")
        mine = [run for run in mine if not left_out or left_out not in run["arm"]]
        if mine:
            named = f"hippocampus 2d, {name}, {iterations} iterations"
            rows.append(situation(named, teacher, mine, arm_alone, mine, region))
    return rows


def situation(
    name: str, teacher: Runs, alone: Runs, arm_alone: str, taught: Runs, region: str = "RegionKD as it is"
) -> list[str]:
    """A row of the first table."""
    others = [chosen(taught, arm=arm) for arm in in_order(taught, "arm") if arm not in (region, arm_alone)]
    best = max(others, key=mean_dice, default=[])
    named = f"{seeds_cell(best)}: {best[0]['arm']}" if best else "-"
    cells = (teacher, chosen(alone, arm=SGD), chosen(alone, arm=arm_alone), chosen(taught, arm=region))
    return [name, *map(seeds_cell, cells), named]


def expected_table(runs: Runs) -> str:
    """Every arm with what was expected of it (expectations.yaml) and what was measured over the seeds that both arms
    have."""
    rows = []
    for row in yaml.safe_load((HERE / "expectations.yaml").read_text())["rows"]:
        mine, is_difference = named_runs(runs, row["of"]), row["to"] is not None
        name, before = row["arm"], 0.0
        if is_difference:
            name += f", against {row['to']}"
            mine, other = of_same_seeds(mine, named_runs(runs, row["against"]))
            before = mean_dice(other) if other else 0.0
        measured = "not run"
        if mine:
            value = round(mean_dice(mine) - before, 3)
            measured = f"{value:+.3f}" if is_difference else f"{value:.3f}"
            if not within(value, row["expected"]):
                measured = f"**{measured}**"
        seeds = str(len(mine)) if mine else ""
        rows.append(
            [str(row["study"]), name, range_cell(row["expected"], is_difference), measured, seeds, row["decided"]]
        )
    return markdown(["study", "arm", "expected", "measured", "seeds", "decided"], rows)


def named_runs(runs: Runs, names: list[str]) -> Runs:
    """The trainings of a study, data set, budget and arm."""
    return chosen(runs, **dict(zip(("study", "dataset", "budget", "arm"), names, strict=True)))


def within(value: float, expected: list[float | None]) -> bool:
    low, high = expected
    return (low is None or value >= low) and (high is None or value <= high)


def range_cell(expected: list[float | None], signed: bool) -> str:
    low, high = (None if e is None else f"{e:+g}" if signed and e else f"{e:g}" for e in expected)
    return f"{low} to {high}" if low and high else f"at least {low}" if low else f"at most {high}"


TABLES: dict[str, Callable[[Runs], str]] = {
    "top": top_table,
    "expected": expected_table,
    "optimizer": optimizer_table,
    "optimizer_settings": optimizer_settings_table,
    "batch_size": batch_size_table,
    "longer": longer_table,
    "taught": taught_table,
    "taught_longer": taught_longer_table,
    "taught_longest": taught_longest_table,
    "better_teacher": better_teacher_table,
    "unlabelled": unlabelled_table,
    "sizes": sizes_table,
    "other_fold": other_fold_table,
    "shapes": shapes_table,
    "shapes_wider": shapes_wider_table,
    "shapes_other": shapes_other_table,
    "shape_optimizer": shape_optimizer_table,
    "few_labels": few_labels_table,
    "no_labels": no_labels_table,
    "noisy_labels": noisy_labels_table,
    "teacher_use": teacher_use_table,
    "other_methods": other_methods_table,
    "ensemble": ensemble_table,
    "region_terms": region_terms_table,
    "no_loss": no_loss_table,
    "three_dimensions": three_dimensions_table,
    "three_dimensions_taught": three_dimensions_taught_table,
    "region_default": region_default_table,
    "shape_taught": shape_taught_table,
    "teacher_optimizer": teacher_optimizer_table,
    "structures": structures_table,
}


def rendered(page: str, runs: Runs) -> str:
    """The page with its tables rebuilt from the runs."""
    return PLACE.sub(lambda found: f"{found[1]}{table(found[2], runs)}\n{found[3]}", page)


def table(name: str, runs: Runs) -> str:
    """A table of the page; most have the name of their study."""
    is_study = (HERE / "studies" / f"{name}.yaml").is_file()
    return TABLES[name](runs) if not is_study or chosen(runs, study=name) else NOT_RUN


def draw(runs: Runs, file: Path) -> None:
    """Dice against iterations and against minutes, a point per training and a line through means (of minutes, the
    median)."""
    alone = [r for r in runs if r["study"] in ("optimizer", "longer")]
    taught = [r for r in runs if r["study"] in ("same_cases", "same_cases_longer")]
    later = [r | {"arm": LATER_TEACHER} for r in chosen(runs, study="better_teacher", arm=CHANNEL_WISE)]
    wanted = [r for r in [*alone, *taught, *later] if r["arm"] in DRAWN]
    datasets = sorted(in_order(wanted, "dataset"))
    figure, axes = plt.subplots(
        len(datasets), 2, figsize=(11, 4.2 * len(datasets)), layout="constrained", squeeze=False
    )
    for row, dataset in zip(axes, datasets, strict=True):
        of_teachers = chosen(runs, study="teachers", dataset=dataset, seed=0)
        for axis, cost in zip(row, (lambda r: r["iterations"], minutes_of), strict=True):
            draw_arms(axis, chosen(wanted, dataset=dataset), cost)
            for teacher in of_teachers:
                axis.axhline(teacher["dice"], color="gray", linestyle="--", linewidth=1)
                axis.annotate(
                    f"teacher, {teacher['budget']}",
                    (0.99, teacher["dice"]),
                    xycoords=("axes fraction", "data"),
                    ha="right",
                    va="bottom",
                    fontsize="small",
                )
            axis.set(title=dataset, ylabel="Dice", xscale="log", ylim=(FRAME.get(dataset), None))
            axis.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
            axis.xaxis.set_minor_formatter(lambda x, _: f"{x:g}" if f"{x:e}"[0] in "235" else "")
            axis.grid(alpha=0.3, which="both")
        row[0].set_xlabel("iterations")
        row[1].set_xlabel("minutes of the processor (earliest: of the clock)")
    handles = dict(zip(*reversed(axes[0][0].get_legend_handles_labels()), strict=True))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=2)
    figure.savefig(file, dpi=90, metadata={"Software": None})
    plt.close(figure)


def draw_arms(axis: Any, runs: Runs, cost: Callable[[dict[str, Any]], float]) -> None:
    """One colour per arm; arms below the frame are named in it."""
    frame = FRAME.get(runs[0]["dataset"], 0.0)
    below = []
    for number, arm in enumerate(DRAWN):
        mine = [run for run in runs if run["arm"] == arm]
        by_budget = [chosen(mine, budget=b) for b in sorted({r["budget"] for r in mine}, key=budget_of)]
        axis.plot([cost(r) for r in mine], [dice_of(r) for r in mine], "o", color=f"C{number}", alpha=0.35)
        means = [(np.median([cost(r) for r in g]), mean_dice(g)) for g in by_budget]
        axis.plot(*(zip(*means, strict=True) if means else ([], [])), "-D", color=f"C{number}", label=arm)
        below += [
            f"{arm}, {group[0]['budget']}: {seeds_cell(group)}" for group in by_budget if mean_dice(group) < frame
        ]
    if below:
        axis.text(0.02, 0.02, "below: " + "\n".join(below), transform=axis.transAxes, fontsize="small")


def mean_dice(runs: Runs) -> float:
    return float(np.mean([dice_of(run) for run in runs]))


def minutes_of(run: dict[str, Any]) -> float:
    return run.get("processor_minutes") or run["minutes"]


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
