"""What makes the teacher's forward pass cheaper: precision, memory format, fewer parts, no autograd, compilation.

Times of one forward pass, with all variants taking turns within one run, relative to the plain one (float32, channels
first, all heads, no_grad).

    python benchmarks/teacher.py
    python benchmarks/teacher.py --size large --device cuda --compile
"""

import argparse
import copy
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measuring import in_turn
from rich.console import Console
from rich.table import Table
from step import SIZES, network
from torch import nn

from nnunetv2_kd.networks import cpu_mode


def variants(teacher: nn.Module, data: torch.Tensor, compiled: bool) -> dict[str, Callable[[], Any]]:
    """Forward passes, named by how they differ from the plain one."""

    def plain(own: nn.Module) -> Callable[[], Any]:
        return torch.no_grad()(lambda: own(data))

    def under_autocast(own: nn.Module, given: torch.Tensor) -> Callable[[], Any]:
        def forward() -> Any:
            with torch.no_grad(), torch.autocast("cuda"):
                return own(given)

        return forward

    finest = copy.deepcopy(teacher)
    finest.decoder.deep_supervision = False
    named = {
        "plain": plain(teacher),
        "inference mode": torch.inference_mode()(lambda: teacher(data)),
        "finest head only": plain(finest),
        "encoder only": plain(teacher.get_submodule("encoder")),
    }
    if data.device.type == "cuda":
        last = copy.deepcopy(teacher).to(memory_format=torch.channels_last_3d)
        named["autocast"] = under_autocast(teacher, data)
        if compiled:
            named["autocast, compiled"] = under_autocast(torch.compile(copy.deepcopy(teacher)), data)
        named["autocast, channels last"] = under_autocast(last, data.to(memory_format=torch.channels_last_3d))
    else:
        for way in cpu_mode.modes_here()[1:]:
            other = copy.deepcopy(teacher)
            cpu_mode.set_mode(other, way)
            named[way.replace("_", " ")] = plain(other)
    if compiled:
        named["compiled"] = plain(torch.compile(copy.deepcopy(teacher)))
    return named


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="hippocampus")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--compile", action="store_true", help="also torch.compile, which needs a compiler")
    parser.add_argument("--json", type=Path, default=None, help="write the numbers here")
    args = parser.parse_args()
    size = SIZES[args.size]
    teacher = network(*size["teacher"], size["classes"]).to(args.device).eval()
    data = torch.randn(size["batch"], 1, *size["patch"], device=args.device)
    calls = variants(teacher, data, args.compile)
    took = in_turn(calls, args.rounds, 1, args.device)
    table = Table("variant", "ms", "/ plain", title=f"teacher's forward pass, {args.size}, {args.device}")
    result = {}
    for name, times in took.items():
        ratio = statistics.median(t / p for t, p in zip(times, took["plain"], strict=True))
        result[name] = {"ms": 1000 * statistics.median(times), "over_plain": ratio}
        table.add_row(name, f"{result[name]['ms']:.0f}", f"{ratio:.2f}")
    Console(width=100).print(table)
    if args.json is not None:
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
