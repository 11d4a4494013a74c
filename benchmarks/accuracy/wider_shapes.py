"""Which wider shape with one convolution a stage takes no more time than a plain one with two, and which other
architectures do: for shapes_wider.yaml and shapes_other.yaml.

Untrained networks in OpenVINO (f32, one thread), one patch at a time, in turns. Run prepare.py first. Writes
latency/wider-shapes.json.

    python benchmarks/accuracy/wider_shapes.py
"""

import json
from functools import partial
from pathlib import Path
from typing import Any

import torch
from nnunetv2.paths import nnUNet_preprocessed
from prepare import DATASETS, TEACHER, other_architectures

from nnunetv2_kd.inference.choose import input_shape, time_in_turns
from nnunetv2_kd.inference.latency import patch_runner, untrained_predictor
from nnunetv2_kd.nnunet.plans import Plans
from nnunetv2_kd.students.shapes import Shape, shape_of

FILE = Path(__file__).parent / "latency" / "wider-shapes.json"
PLAIN = {  # channels at full resolution, by data set
    "hippocampus 2d, 8 channels": ("4", 8),
    "hippocampus 2d, 16 channels": ("4", 16),
    "ultrasound 2d, 4 channels": ("61", 4),
    "ultrasound 2d, 8 channels": ("61", 8),
}
STEP = 2  # of the channels at full resolution
TOLERANCE = 1.02  # how well the times repeat
ROUNDS = 41


def grown(first: int, most: int, stages: int) -> list[int]:
    """Channels that double from stage to stage up to ``most`` times the first."""
    return [first * min(2**stage, most) for stage in range(stages)]


def main() -> None:
    torch.set_num_threads(1)
    found = {}
    for name, (number, first) in PLAIN.items():
        plans, dataset_json = read(number)
        features = DATASETS[number]["features"]
        most, stages = features[-1] // features[0], len(features)
        plain = shape_of(plans, "2d", dataset_json, grown(first, most, stages), None)
        wider = [
            shape_of(plans, "2d", dataset_json, grown(channels, most, stages), 1)
            for channels in range(first + STEP, 2 * first + 1, STEP)
        ]
        found[name] = timed([(plans, shape) for shape in (plain, *wider)], dataset_json)
    plans, dataset_json = read("4")
    plain = (plans, shape_of(plans, "2d", dataset_json, [4, 8, 16, 32], None))
    for name, other in other_architectures(plans).items():
        stages = other["configurations"]["2d"]["architecture"]["arch_kwargs"]["n_stages"]
        shapes = [shape_of(other, "2d", dataset_json, grown(first, 8, stages), None) for first in range(4, 13, STEP)]
        found[name] = timed([plain, *((other, shape) for shape in shapes)], dataset_json)
    FILE.write_text(json.dumps(found, indent=1) + "\n")


def read(number: str) -> tuple[Plans, dict[str, Any]]:
    """The teacher's plans and dataset.json of a data set."""
    folder = Path(str(nnUNet_preprocessed)) / DATASETS[number]["name"]
    return json.loads((folder / f"{TEACHER}.json").read_text()), json.loads((folder / "dataset.json").read_text())


def timed(networks: list[tuple[Plans, Shape]], dataset_json: dict[str, Any]) -> list[dict[str, Any]]:
    """Size and milliseconds of every shape of its plans. The first is the plain one; the last that takes no longer is
    the one that shapes_wider.yaml trains."""
    runs = {}
    for number, (plans, shape) in enumerate(networks):
        predictor = untrained_predictor(shape.plans(plans, "2d"), "2d", dataset_json, mirroring=False)
        run = patch_runner(predictor, "openvino", "f32")
        runs[number] = partial(run, torch.zeros(input_shape(predictor)))
    ms = time_in_turns(runs, ROUNDS)
    allowed = [number for number in runs if number and ms[number] <= TOLERANCE * ms[0]]
    rows = [
        {
            "features": list(shape.features),
            "convs_per_stage": shape.convs_per_stage,
            "parameters": shape.cost.params,
            "ms_per_patch": round(ms[number], 3),
            "trained": number == 0 or number in allowed[-1:],
        }
        for number, (_, shape) in enumerate(networks)
    ]
    print(*rows, sep="\n", flush=True)
    return rows


if __name__ == "__main__":
    main()
