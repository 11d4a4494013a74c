"""What region vectors cost: time over one plain reduction of the same features, and memory, for few and many classes.

For a patch of 128^3 with 32 channels, at stages of stride 1 and 2. ``organs`` are ellipsoids on background, as in a
whole-body scan; ``cells`` fill the patch, with every voxel near a border. With 3 classes the same shapes have 3 labels,
so that only the number of classes differs. ``first`` includes reading the labels, as once per training step; ``again``
is what every further term or network adds.

    python benchmarks/regions.py
"""

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measuring import high_water_mark, in_its_own_process, in_turn, reset_high_water_mark
from rich.console import Console
from rich.table import Table
from torch import Tensor

from nnunetv2_kd.regions import region_vectors
from nnunetv2_kd.regions.membership import label_regions

SIDE, CHANNELS, MANY, FEW = 128, 32, 105, 3


def grid(device: str) -> Tensor:
    """Coordinates of all voxels ``(SIDE^3, 3)``."""
    axis = torch.arange(SIDE, device=device)
    return torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1).view(-1, 3).float()


def organs(device: str) -> Tensor:
    """``(1, 1, SIDE, SIDE, SIDE)``: 104 ellipsoids with half-axes of 4 to 16 voxels on background."""
    voxels, rng = grid(device), torch.Generator().manual_seed(0)
    labels = torch.zeros(len(voxels), dtype=torch.uint8, device=device)
    for label in range(1, MANY):
        centre = (SIDE * torch.rand(3, generator=rng)).to(device)
        axes = (4 + 12 * torch.rand(3, generator=rng)).to(device)
        labels[((voxels - centre) / axes).square().sum(dim=1) < 1] = label
    return labels.view(1, 1, SIDE, SIDE, SIDE)


def cells(device: str) -> Tensor:
    """Every voxel has the label of the nearest of 105 random points."""
    points = (SIDE * torch.rand(MANY, 3, generator=torch.Generator().manual_seed(0))).to(device)
    nearest = [torch.cdist(part, points).argmin(dim=1) for part in grid(device).split(2**16)]
    return torch.cat(nearest).to(torch.uint8).view(1, 1, SIDE, SIDE, SIDE)


def calls_of(labels: Tensor, classes: int, features: Tensor) -> dict[str, Callable[[], Any]]:
    few = labels % FEW if classes == FEW else labels
    known = label_regions(few, classes)
    known.mass(features.shape[2:])
    learning = features.clone().requires_grad_()

    def with_gradient() -> None:
        region_vectors(learning, known)[0].sum().backward()
        learning.grad = None

    return {
        f"{classes} first": lambda: region_vectors(features, label_regions(few, classes)),
        f"{classes} again": lambda: region_vectors(features, known),
        f"{classes} gradient": with_gradient,
    }


def measure(labels: Tensor, stride: int, device: str, rounds: int) -> dict[str, float]:
    """Medians in ms: a plain reduction, and all of `calls_of` for few and many classes, taking turns."""
    features = torch.randn(1, CHANNELS * stride, *[SIDE // stride] * 3, device=device)
    calls: dict[str, Callable[[], Any]] = {"plain": lambda: features.sum(dim=(2, 3, 4))}
    for classes in (FEW, MANY):
        calls |= calls_of(labels, classes, features)
    took = in_turn(calls, rounds, 1, device)
    return {name: 1000 * statistics.median(times) for name, times in took.items()}


def extra_mib(shapes: str, device: str, queue: Any) -> None:
    """Peak memory of one call with many classes, above that of its arguments; runs in its own process."""
    labels = {"organs": organs, "cells": cells}[shapes](device)
    features = torch.randn(1, CHANNELS, SIDE, SIDE, SIDE, device=device)
    features.sum()
    region_vectors(features[..., :16, :16, :16], label_regions(labels[..., :16, :16, :16], MANY))  # libraries load
    before = reset_high_water_mark(device)
    region_vectors(features, label_regions(labels, MANY))
    queue.put(high_water_mark(device) - before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--json", type=Path, default=None, help="write the numbers here")
    args = parser.parse_args()
    table = Table(title=f"region vectors, {args.device}, {torch.get_num_threads()} threads")
    columns = ("shapes", "stride", "plain ms", "3 first", "3 again", "105 first", "105 again", "105 / 3", "MiB")
    for column in columns:
        table.add_column(column, justify="left" if column == "shapes" else "right")
    results = {}
    for shapes, make in (("organs", organs), ("cells", cells)):
        mib = in_its_own_process(extra_mib, shapes, args.device)
        for stride in (1, 2):
            took = measure(make(args.device), stride, args.device, args.rounds)
            results[f"{shapes}, stride {stride}"] = took | {"extra_mib": mib}
            over = {name: f"{ms / took['plain']:.1f}" for name, ms in took.items()}
            ratio = f"{took['105 first'] / took['3 first']:.2f}"
            cells_of_row = (over[n] for n in ("3 first", "3 again", "105 first", "105 again"))
            memory = f"{mib:.0f}" if stride == 1 else ""
            table.add_row(shapes, str(stride), f"{took['plain']:.1f}", *cells_of_row, ratio, memory)
    Console(width=120).print(table)
    if args.json is not None:
        args.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
