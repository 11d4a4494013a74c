"""A benchmark's results for the terminal, as Markdown, and as JSON."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from nnunetv2_kd import __version__
from nnunetv2_kd.benchmark.run import Benchmark, BenchmarkRow
from nnunetv2_kd.formatting import NOTHING, format_count, markdown_escaped, markdown_line
from nnunetv2_kd.networks import cpu_mode
from nnunetv2_kd.nnunet.model_folder import parse_model_name

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


# for narrow terminals: faster* and ms* are without mirroring
SHORT_HEADINGS = ("model", "in", "params", "GFLOPs", "MiB", "ms", "faster", "ms*", "faster*")
LEFT_OUT_WHERE_NARROW, ROOM_FOR_ALL = (
    ("GFLOPs", "MiB"),
    100,
)  # narrowest terminal that gets all columns; longest name in it
SHORT_NOTE = "MiB: peak. ms: per case. faster: how many times. *: without mirroring."


def short_names(names: Sequence[str]) -> dict[str, str]:
    """Names that tell models apart: the parts of ``TRAINER__PLANS__CONFIGURATION`` in which they differ, the trainer
    first.

    >>> short_names(["nnUNetTrainer__nnUNetPlans__2d", "nnUNetTrainerKD__nnUNetPlans__2d"])
    {'nnUNetTrainer__nnUNetPlans__2d': 'nnUNetTrainer', 'nnUNetTrainerKD__nnUNetPlans__2d': 'KD'}
    """
    parsed = {name: parse_model_name(name) if Path(name).name == name else None for name in names}
    parts = [tuple(one) for one in parsed.values() if one is not None]
    differing = [number for number in range(3) if number == 0 or len({one[number] for one in parts}) > 1]
    shortened = {}
    for name, one in parsed.items():
        if one is None:  # the folder, because two models have the same name
            shortened[name] = name
            continue
        words = one.shortened()
        shortened[name] = " · ".join(words[number] for number in differing)
    return shortened


def table_rows(benchmark: Benchmark) -> list[list[str]]:
    """Headings, then one line per row. The column "computes in" is left out if all rows are stock nnU-Net's."""
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
    """How the numbers were measured."""
    memory = "CUDA memory allocated."
    if benchmark.empty_mib is not None:
        memory = (
            f"a process that predicts one case. {benchmark.empty_mib:.0f} MiB of it are Python, torch and nnU-Net "
            "before a model is loaded."
        )
    cases = "1 case" if len(benchmark.cases) == 1 else f"median of {len(benchmark.cases)} cases"
    return [
        f"On {benchmark.device}. ms per case: from image to segmentation through nnU-Net's predictor with one fold; "
        f"{cases} {benchmark.images}, each the fastest of {benchmark.repeats}, models taking turns.",
        f"times faster: compared with {benchmark.reference.name}, the first line with a time. Peak: {memory}",
    ]


def print_benchmark(benchmark: Benchmark, console: Console) -> None:
    headings, *lines = table_rows(benchmark)
    names = short_names([line[0] for line in lines])
    table = Table(title=Text(f"On {benchmark.device}"), box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    short = SHORT_HEADINGS if len(headings) == len(HEADINGS) else (SHORT_HEADINGS[0], *SHORT_HEADINGS[2:])
    left_out = LEFT_OUT_WHERE_NARROW if console.width < ROOM_FOR_ALL else ()
    kept = [number for number, heading in enumerate(short) if heading not in left_out]
    for number in kept:
        is_text = short[number] in SHORT_HEADINGS[:2]
        table.add_column(short[number], justify="left" if is_text else "right", no_wrap=number > 0, overflow="fold")
    for name, *cells in lines:
        row = [names[name], *cells]
        table.add_row(*(Text(row[number]) for number in kept))
    console.print(table)
    for note in (SHORT_NOTE, *footnotes(benchmark)):
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
