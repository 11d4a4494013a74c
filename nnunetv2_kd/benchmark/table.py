"""A benchmark for the terminal, for a README, and for programs."""

import json
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from nnunetv2_kd import __version__
from nnunetv2_kd.benchmark.run import Benchmark, BenchmarkRow
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


def table_rows(benchmark: Benchmark) -> list[list[str]]:
    """Headings, then one line per row; the way to compute only where it is not everywhere nnU-Net's own."""
    lines = [list(HEADINGS), *(_cells(benchmark, row) for row in benchmark.rows)]
    if all(row.timed.computes_in == cpu_mode.STOCK for row in benchmark.rows):
        lines = [line[:1] + line[2:] for line in lines]
    return lines


def _cells(benchmark: Benchmark, row: BenchmarkRow) -> list[str]:
    cost = row.cost
    values = [
        format_count(cost.params) if cost.params is not None else NOTHING,
        _number(cost.gflops, 2),
        _number(row.peak_mib, 0),
    ]
    for mirroring in (True, False):
        values += [_number(row.timed.ms(mirroring), 0), _number(benchmark.times_faster(row, mirroring), 1)]
    return [row.name, row.timed.computes_in.replace("_", " "), *values]


def footnotes(benchmark: Benchmark) -> list[str]:
    """How it was measured."""
    memory = "CUDA memory allocated."
    if benchmark.empty_mib is not None:
        memory = (
            f"a process that predicts one case, {benchmark.empty_mib:.0f} MiB of it Python, torch and nnU-Net before "
            "any model."
        )
    cases = "1 case" if len(benchmark.cases) == 1 else f"median of {len(benchmark.cases)} cases"
    return [
        f"On {benchmark.device}. ms per case: from image to segmentation through nnU-Net's predictor with one fold; "
        f"{cases} {benchmark.images}, each the fastest of {benchmark.repeats}, models taking turns.",
        f"times faster: than {benchmark.reference.name}, the first line with a time. Peak: {memory}",
    ]


def print_benchmark(benchmark: Benchmark, console: Console) -> None:
    headings, *lines = table_rows(benchmark)
    table = Table(title=Text(f"On {benchmark.device}"))
    for heading in headings:
        table.add_column(heading, justify="left" if heading in HEADINGS[:2] else "right", overflow="fold")
    for line in lines:
        table.add_row(*map(Text, line))
    console.print(table)
    for note in footnotes(benchmark):
        console.print(Text(note, style="dim"))
    for problem in benchmark.problems:
        console.print(Text(f"Missing: {problem}", style="yellow"))


def to_markdown(benchmark: Benchmark) -> str:
    headings, *lines = table_rows(benchmark)
    parts = [markdown_line(headings), markdown_line(["---" if h in HEADINGS[:2] else "---:" for h in headings])]
    parts += [markdown_line([markdown_escaped(cell) for cell in line]) for line in lines]
    parts += ["", *(markdown_escaped(note) for note in [*footnotes(benchmark), *benchmark.problems])]
    return "\n".join(parts) + "\n"


def to_json(benchmark: Benchmark) -> str:
    return json.dumps(
        {
            "nnunetv2_kd": __version__,
            "torch": torch.__version__,
            "device": benchmark.device,
            "cases": benchmark.cases,
            "repeats": benchmark.repeats,
            "process_without_model_mib": benchmark.empty_mib,
            "models": [_as_dict(benchmark, row) for row in benchmark.rows],
            "problems": benchmark.problems,
        },
        indent=1,
        allow_nan=False,
    )


def _as_dict(benchmark: Benchmark, row: BenchmarkRow) -> dict[str, Any]:
    return {
        "model": row.name,
        "folder": str(row.timed.model.folder),
        "fold": row.timed.model.predicting_folds[0].name,
        "cpu_speed": row.timed.mode if benchmark.on_cpu and row.timed.runtime is None else None,
        "runtime": row.timed.runtime,
        "precision": row.timed.precision if row.timed.runtime is not None else None,
        "params": row.cost.params,
        "gflops_per_patch": row.cost.gflops,
        "peak_mib": row.peak_mib,
        "ms_per_case": row.timed.ms(),
        "times_faster": benchmark.times_faster(row),
        "ms_per_case_without_mirroring": row.timed.ms(False),
        "times_faster_without_mirroring": benchmark.times_faster(row, False),
    }


def _number(value: float | None, digits: int) -> str:
    return NOTHING if value is None else f"{value:.{digits}f}"
