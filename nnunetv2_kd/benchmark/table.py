"""A benchmark for the terminal, for a README, and for programs."""

import json
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from nnunetv2_kd import __version__
from nnunetv2_kd.benchmark.run import Benchmark, Row
from nnunetv2_kd.formatting import NOTHING, format_count, markdown_escaped, markdown_line
from nnunetv2_kd.networks import cpu_mode

HEADINGS = (
    "model",
    "computes in",
    "parameters",
    "GFLOPs per patch",
    "peak MiB",
    "ms per case",
    "times faster",
    "ms without mirroring",
    "times faster",
)


def cells(found: Benchmark) -> list[list[str]]:
    """Headings, then one line per row; the way to compute only where it is not everywhere nnU-Net's own."""
    lines = [list(HEADINGS), *(_cells(found, row) for row in found.rows)]
    if all(row.run.way == cpu_mode.STOCK for row in found.rows):
        lines = [line[:1] + line[2:] for line in lines]
    return lines


def _cells(found: Benchmark, row: Row) -> list[str]:
    cost = row.cost
    values = [
        format_count(cost.params) if cost.params is not None else NOTHING,
        _number(cost.gflops, 2),
        _number(row.peak_mib, 0),
    ]
    for mirroring in (True, False):
        values += [_number(row.run.ms(mirroring), 0), _number(found.times_faster(row, mirroring), 1)]
    return [row.name, row.run.way.replace("_", " "), *values]


def notes(found: Benchmark) -> list[str]:
    """How it was measured."""
    memory = "CUDA memory allocated."
    if found.empty_mib is not None:
        memory = (
            f"a process that predicts one case, {found.empty_mib:.0f} MiB of it Python, torch and nnU-Net before any "
            "model."
        )
    cases = "1 case" if len(found.cases) == 1 else f"median of {len(found.cases)} cases"
    return [
        f"On {found.device}. ms per case: from image to segmentation through nnU-Net's predictor with one fold; "
        f"{cases} {found.images}, each the fastest of {found.repeats}, models taking turns.",
        f"times faster: than {found.reference.name}, the first line with a time. Peak: {memory}",
    ]


def print_benchmark(found: Benchmark, console: Console) -> None:
    headings, *lines = cells(found)
    table = Table(title=Text(f"On {found.device}"))
    for heading in headings:
        table.add_column(heading, justify="left" if heading in HEADINGS[:2] else "right", overflow="fold")
    for line in lines:
        table.add_row(*map(Text, line))
    console.print(table)
    for note in notes(found):
        console.print(Text(note, style="dim"))
    for problem in found.problems:
        console.print(Text(f"Missing: {problem}", style="yellow"))


def to_markdown(found: Benchmark) -> str:
    headings, *lines = cells(found)
    parts = [markdown_line(headings), markdown_line(["---" if h in HEADINGS[:2] else "---:" for h in headings])]
    parts += [markdown_line([markdown_escaped(cell) for cell in line]) for line in lines]
    parts += ["", *(markdown_escaped(note) for note in [*notes(found), *found.problems])]
    return "\n".join(parts) + "\n"


def to_json(found: Benchmark) -> str:
    return json.dumps(
        {
            "nnunetv2_kd": __version__,
            "torch": torch.__version__,
            "device": found.device,
            "cases": found.cases,
            "repeats": found.repeats,
            "process_without_model_mib": found.empty_mib,
            "models": [_as_dict(found, row) for row in found.rows],
            "problems": found.problems,
        },
        indent=1,
        allow_nan=False,
    )


def _as_dict(found: Benchmark, row: Row) -> dict[str, Any]:
    return {
        "model": row.name,
        "folder": str(row.run.model.folder),
        "fold": row.run.model.predicting_folds[0].name,
        "cpu_speed": row.run.way if found.on_cpu else None,
        "params": row.cost.params,
        "gflops_per_patch": row.cost.gflops,
        "peak_mib": row.peak_mib,
        "ms_per_case": row.run.ms(),
        "times_faster": found.times_faster(row),
        "ms_per_case_without_mirroring": row.run.ms(False),
        "times_faster_without_mirroring": found.times_faster(row, False),
    }


def _number(value: float | None, digits: int) -> str:
    return NOTHING if value is None else f"{value:.{digits}f}"
