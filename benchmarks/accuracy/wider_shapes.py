"""Which wider shape with one convolution a stage takes no more time than a plain one with two: for shapes_wider.yaml.

Untrained networks in OpenVINO (f32, one thread), one patch at a time, in turns. Run prepare.py first. Writes
latency/wider-shapes.json.

    python benchmarks/accuracy/wider_shapes.py
"""

import json
from functools import partial
from pathlib import Path

import torch
from nnunetv2.paths import nnUNet_preprocessed
from prepare import DATASETS, TEACHER

from nnunetv2_kd.inference.choose import input_shape, time_in_turns
from nnunetv2_kd.inference.latency import patch_runner, untrained_predictor
from nnunetv2_kd.students.shapes import shape_of

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
        folder = Path(str(nnUNet_preprocessed)) / DATASETS[number]["name"]
        plans = json.loads((folder / f"{TEACHER}.json").read_text())
        dataset_json = json.loads((folder / "dataset.json").read_text())
        features = DATASETS[number]["features"]
        most, stages = features[-1] // features[0], len(features)
        shapes = [shape_of(plans, "2d", dataset_json, grown(first, most, stages), None)]
        shapes += [
            shape_of(plans, "2d", dataset_json, grown(wider, most, stages), 1)
            for wider in range(first + STEP, 2 * first + 1, STEP)
        ]
        runs = {}
        for shape in shapes:
            predictor = untrained_predictor(shape.plans(plans, "2d"), "2d", dataset_json, mirroring=False)
            run = patch_runner(predictor, "openvino", "f32")
            runs[str(shape)] = partial(run, torch.zeros(input_shape(predictor)))
        ms = time_in_turns(runs, ROUNDS)
        allowed = [shape for shape in shapes[1:] if ms[str(shape)] <= TOLERANCE * ms[str(shapes[0])]]
        found[name] = [
            {
                "features": list(shape.features),
                "convs_per_stage": shape.convs_per_stage,
                "parameters": shape.cost.params,
                "ms_per_patch": round(ms[str(shape)], 3),
                "trained": shape in (shapes[0], *allowed[-1:]),
            }
            for shape in shapes
        ]
        for row in found[name]:
            print(name, row)
    FILE.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
