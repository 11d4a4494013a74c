"""Time per case on a CPU: the teacher in stock nnUNetv2_predict's predictor, and every model in the predictor of
nnUNetv2_kd predict, in every runtime and precision.

Processor time of one thread, medians; on every case all rows take turns in random order. Writing files and starting
Python are not included.

    OMP_NUM_THREADS=1 python benchmarks/deploy.py cases TEACHER_FOLDER STUDENT_FOLDER ... -i IMAGES
    OMP_NUM_THREADS=1 python benchmarks/deploy.py passes --patch 128 128 128 --stages 6 --classes 14
    OMP_NUM_THREADS=1 python benchmarks/deploy.py parts MODEL_FOLDER IMAGE
    OMP_NUM_THREADS=1 python benchmarks/deploy.py parts --ct

``passes`` times untrained networks with nnU-Net's default number of parameters, and with a quarter and a sixteenth of
it, one patch at a time. ``parts`` times everything except the network: stock nnU-Net's steps and ours on the same case
(``--ct``: an image of 512x512x200 voxels made from noise and ellipsoids, 14 classes, from 0.8x0.8x1.5 to 1.5 mm).
"""

import argparse
import contextlib
import io
import json
import random
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from rich.console import Console
from rich.table import Table

from nnunetv2_kd.inference.choose import use_runtime
from nnunetv2_kd.inference.device import device_name
from nnunetv2_kd.inference.labels import largest
from nnunetv2_kd.inference.latency import NoNetwork, patch_runner, untrained_predictor
from nnunetv2_kd.inference.predictor import FastPredictor
from nnunetv2_kd.inference.preprocess import preprocess_array
from nnunetv2_kd.inference.runtimes import PRECISIONS_OF, is_installed
from nnunetv2_kd.networks.cpu_mode import cpu_has_bfloat16
from nnunetv2_kd.nnunet.files import read_json
from nnunetv2_kd.nnunet.images import reader_of

CPU = torch.device("cpu")


def seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    started = time.process_time()
    found = work()
    return time.process_time() - started, found


def rows_here(only: list[str] | None) -> list[tuple[str, str]]:
    rows = [(r, p) for r in ("torch", "openvino", "onnx") if is_installed(r) for p in PRECISIONS_OF[r]]
    rows = [(r, p) for r, p in rows if p != "bf16" or cpu_has_bfloat16()]
    return [row for row in rows if only is None or " ".join(row) in only]


def predictor_for(folder: Path, fold: str, kind: type, mirroring: bool = True) -> Any:
    with contextlib.redirect_stdout(io.StringIO()):
        predictor = kind(device=CPU, allow_tqdm=False, use_mirroring=mirroring)
        predictor.initialize_from_trained_model_folder(str(folder), [fold])
    return predictor


def time_cases(args: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds of every row, with and without mirroring."""
    runs: dict[str, Any] = {
        f"{args.models[0].name} | stock nnU-Net": predictor_for(args.models[0], args.fold, nnUNetPredictor)
    }
    for model in args.models:
        for runtime, precision in rows_here(args.rows):
            predictor = predictor_for(model, args.fold, FastPredictor)
            use_runtime(predictor, [model / f"fold_{args.fold}" / "checkpoint_final.pth"], runtime, precision)
            runs[f"{model.name} | {runtime} {precision}"] = predictor
    plans, dataset_json = (read_json(args.models[0] / f"{name}.json") for name in ("plans", "dataset"))
    files = sorted(args.images.glob(f"*_0000{dataset_json['file_ending']}"))[: args.cases]
    reader = reader_of(plans, dataset_json)()
    order = random.Random(0)
    took: dict[str, dict[bool, list[float]]] = {name: {True: [], False: []} for name in runs}
    for number, file in enumerate([files[0], *files]):  # the first warms up
        image, properties = reader.read_images([str(file)])
        for name in order.sample(list(runs), len(runs)):
            for mirroring in (True, False):
                runs[name].use_mirroring = mirroring
                with contextlib.redirect_stdout(io.StringIO()):
                    elapsed, _ = seconds(partial(runs[name].predict_single_npy_array, image, dict(properties)))
                if number:
                    took[name][mirroring].append(1000 * elapsed)
    return {
        name: {"mirroring": median(times[True]), "no mirroring": median(times[False])} for name, times in took.items()
    }


def features_of(stages: int, width: float, dims: int) -> list[int]:
    """Channels per stage as nnU-Net plans them, times a width."""
    most = 320 if dims == 3 else 512
    return [int(min(32 * 2**stage, most) * width) for stage in range(stages)]


def plans_of(patch: list[int], features: list[int], spacing: list[float], convs: int = 2) -> dict[str, Any]:
    """Plans like nnU-Net's for a network of this patch size and these channels per stage."""
    dims, stages = len(patch), len(features)
    resampling = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}
    configuration = {
        "data_identifier": "none",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": patch,
        "median_image_size_in_voxels": patch,
        "spacing": spacing,
        "normalization_schemes": ["CTNormalization"],
        "use_mask_for_norm": [False],
        "batch_dice": False,
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": resampling | {"order": 3},
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_seg_kwargs": resampling | {"is_seg": True},
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": resampling,
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": {
                "n_stages": stages,
                "features_per_stage": features,
                "conv_op": f"torch.nn.modules.conv.Conv{dims}d",
                "kernel_sizes": [[3] * dims] * stages,
                "strides": [[1] * dims] + [[2] * dims] * (stages - 1),
                "n_conv_per_stage": [convs] * stages,
                "n_conv_per_stage_decoder": [convs] * (stages - 1),
                "conv_bias": True,
                "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dims}d",
                "norm_op_kwargs": {"eps": 1e-05, "affine": True},
                "dropout_op": None,
                "dropout_op_kwargs": None,
                "nonlin": "torch.nn.LeakyReLU",
                "nonlin_kwargs": {"inplace": True},
            },
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
    }
    intensities = {"mean": 0.0, "std": 200.0, "percentile_00_5": -900.0, "percentile_99_5": 900.0}
    return {
        "dataset_name": "Dataset999_CT",
        "plans_name": "nnUNetPlans",
        "image_reader_writer": "SimpleITKIO",
        "label_manager": "LabelManager",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "foreground_intensity_properties_per_channel": {"0": intensities},
        "configurations": {"it": configuration},
    }


def dataset_json_of(classes: int) -> dict[str, Any]:
    labels = {"background": 0} | {f"organ {i}": i for i in range(1, classes)}
    return {"channel_names": {"0": "CT"}, "labels": labels, "file_ending": ".nii.gz", "numTraining": 1}


def time_passes(args: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds per patch; rows take turns."""
    runs = {}
    dataset_json = dataset_json_of(args.classes)
    data = torch.zeros(1, 1, *args.patch)
    for name, width in (("1", 1.0), ("1/4", 0.5), ("1/16", 0.25)):
        plans = plans_of(args.patch, features_of(args.stages, width, len(args.patch)), [1.5] * len(args.patch))
        for runtime, precision in rows_here(args.rows):
            if precision != "int8":  # int8 needs real cases for calibration
                predictor = untrained_predictor(plans, "it", dataset_json, True)
                runs[f"{name} | {runtime} {precision}"] = patch_runner(predictor, runtime, precision)
    took: dict[str, list[float]] = {name: [] for name in runs}
    order = random.Random(0)
    for number in range(args.rounds + 1):
        for name in order.sample(list(runs), len(runs)):
            with torch.inference_mode():
                elapsed, _ = seconds(partial(runs[name], data))
            if number or args.rounds == 0:
                took[name].append(1000 * elapsed)
    return {name: {"ms a patch": median(times)} for name, times in took.items()}


def ct_image(shape: tuple[int, ...] = (200, 512, 512)) -> np.ndarray:
    """Noise with ellipsoids, ``(1, *shape)``."""
    rng = np.random.default_rng(0)
    image = rng.normal(-100, 60, shape).astype(np.float32)
    grid = np.ogrid[tuple(slice(0, size) for size in shape)]
    for number in range(13):
        centre, radius = rng.uniform(0.25, 0.75, 3) * shape, rng.uniform(0.05, 0.2, 3) * shape
        inside = sum(((axis - c) / r) ** 2 for axis, c, r in zip(grid, centre, radius, strict=True)) < 1
        image[inside] += 50 * (number + 1)
    return image[None]


def time_parts(args: argparse.Namespace) -> dict[str, Any]:
    """Seconds for every part of one case except the network, stock and ours; and the number of voxels that differ."""
    if args.ct:
        plans, dataset_json = plans_of([128] * 3, features_of(6, 0.25, 3), [1.5, 1.5, 1.5]), dataset_json_of(14)
        image, properties = ct_image(), {"spacing": [1.5, 0.8, 0.8]}
        configuration = "it"
    else:
        plans, dataset_json = read_json(args.model / "plans.json"), read_json(args.model / "dataset.json")
        image, properties = reader_of(plans, dataset_json)().read_images([str(args.image)])
        configuration = args.model.name.split("__")[-1]
    manager = PlansManager(plans)
    config = manager.get_configuration(configuration)
    labels = manager.get_label_manager(dataset_json)
    found: dict[str, Any] = {}
    preprocessor = config.preprocessor_class(verbose=False)
    stock, (expected, _, of_stock) = seconds(
        lambda: preprocessor.run_case_npy(image, None, dict(properties), manager, config, dataset_json)
    )
    ours, (data, _, of_ours) = seconds(
        lambda: preprocess_array(image, None, dict(properties), manager, config, dataset_json)
    )
    assert np.array_equal(expected, data)
    found["preprocessing"] = (stock, ours)
    predictor = untrained_predictor(plans, configuration, dataset_json, True)
    predictor.network = NoNetwork(labels.num_segmentation_heads)
    predictor.label_manager = labels
    data = torch.from_numpy(np.ascontiguousarray(data, dtype=np.float32))
    tiles = []
    for kind in (nnUNetPredictor, FastPredictor):
        predictor._internal_maybe_mirror_and_predict = partial(kind._internal_maybe_mirror_and_predict, predictor)
        patch = (slice(None), *(slice(size) for size in config.patch_size))
        predictor.predict_logits_from_preprocessed_data(data[patch])  # compiles, and makes the Gaussian weights
        predictor.network.calls = 0
        elapsed, logits = seconds(partial(predictor.predict_logits_from_preprocessed_data, data))
        tiles.append(elapsed)
    found["tiles, mirroring, Gaussian weights"] = tuple(tiles)
    found["forward passes"] = (predictor.network.calls, predictor.network.calls)
    # blobs, one class each, similar to a trained network's logits, without running one
    logits = smooth_logits(tuple(logits.shape))
    largest(logits[:, :2, :4, :4], (3, 5, 5), 1)  # compiles
    stock, expected = seconds(
        lambda: convert_predicted_logits_to_segmentation_with_correct_shape(
            logits.numpy(), manager, config, labels, of_stock, num_threads_torch=1
        )
    )
    ours, segmentation = seconds(lambda: predictor.segmentation_of(logits, of_ours))
    found["logits to segmentation"] = (stock, ours)
    found["voxels that differ"] = int((np.asarray(expected) != segmentation).sum())
    return found


def smooth_logits(shape: tuple[int, ...]) -> torch.Tensor:
    """Logits ``(K, *S)`` in half precision: background, and one blob for every other class."""
    rng = np.random.default_rng(0)
    logits = np.zeros(shape, dtype=np.float16)
    logits[0] = 2
    grid = np.ogrid[tuple(slice(0, size) for size in shape[1:])]
    for k in range(1, shape[0]):
        centre = rng.uniform(0.2, 0.8, len(grid)) * shape[1:]
        radius = rng.uniform(0.05, 0.2, len(grid)) * shape[1:]
        distance = sum(((axis - c) / r) ** 2 for axis, c, r in zip(grid, centre, radius, strict=True))
        logits[k] = 12 * np.exp(-distance)
    return torch.from_numpy(logits)


def show(found: dict[str, Any], title: str, markdown: bool) -> None:
    headings = ["", *next(iter(found.values()))]
    reference = next(iter(found.values()))
    rows = [
        [name, *(f"{value:.1f} ({reference[key] / value:.1f}x)" for key, value in row.items())]
        for name, row in found.items()
    ]
    if markdown:
        for line in (headings, ["---"] * len(headings), *rows):
            print(f"| {' | '.join(cell.replace('|', ',') for cell in line)} |")
        return
    table = Table(*headings, title=title)
    for row in rows:
        table.add_row(*row)
    Console(width=140).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", action="store_true")
    commands = parser.add_subparsers(dest="command", required=True)
    cases = commands.add_parser("cases")
    cases.add_argument("models", nargs="+", type=Path, help="the teacher first")
    cases.add_argument("-i", dest="images", type=Path, required=True)
    cases.add_argument("-f", dest="fold", default="0")
    cases.add_argument("--cases", type=int, default=5)
    cases.add_argument("--rows", nargs="+", help='only these, such as "openvino f32"')
    passes = commands.add_parser("passes")
    passes.add_argument("--patch", nargs="+", type=int, default=[128, 128, 128])
    passes.add_argument("--stages", type=int, default=6)
    passes.add_argument("--classes", type=int, default=14)
    passes.add_argument("--rounds", type=int, default=3)
    passes.add_argument("--rows", nargs="+")
    parts = commands.add_parser("parts")
    parts.add_argument("model", nargs="?", type=Path)
    parts.add_argument("image", nargs="?", type=Path)
    parts.add_argument("--ct", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with torch.inference_mode():
        found = {"cases": time_cases, "passes": time_passes, "parts": time_parts}[args.command](args)
    if args.json is not None:
        args.json.write_text(json.dumps(found, indent=2) + "\n")
    if args.command == "parts":
        for name, value in found.items():
            print(name, *(f"{part:.3f}" for part in (value if isinstance(value, tuple) else (value,))))
    else:
        show(found, f"processor time in ms on {device_name(CPU)}", args.markdown)


if __name__ == "__main__":
    main()
