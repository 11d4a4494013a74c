"""What the demo ends with: one table and one picture."""

import contextlib
import io
import json
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import numpy as np
import torch
from nnunetv2.evaluation.evaluate_predictions import compute_metrics_on_folder
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from rich.table import Table

from nnunetv2_kd.demo.run import CONFIGURATION, DATASET, MODELS, DemoModel, read_plans
from nnunetv2_kd.formatting import format_count
from nnunetv2_kd.networks.cost import network_cost

COLOURS = {1: "tab:red", 2: "tab:cyan"}


def evaluate(model: DemoModel, output: Path) -> dict[str, Any]:
    """nnU-Net's evaluation of a model's predictions of the held-aside cases, as in summary.json."""
    predictions = model.predictions(output)
    return compute_metrics_on_folder(
        str(output / "raw" / DATASET / "labelsTs"),
        str(predictions),
        str(predictions / "summary.json"),
        SimpleITKIO(),
        ".nii.gz",
        list(COLOURS),
        num_processes=1,
    )


def ms_per_case(models: Sequence[DemoModel], output: Path) -> dict[str, float]:
    """Median milliseconds from image to segmentation (preprocessing, mirrored sliding window, resampling back) on the
    CPU. The models take turns on every case, so that what else the machine does weighs on all alike."""
    predictors = {}
    for model in models:
        predictors[model.name] = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
        predictors[model.name].initialize_from_trained_model_folder(str(model.folder(output)), (0,))
    images = sorted((output / "raw" / DATASET / "imagesTs").glob("*.nii.gz"))
    took: dict[str, list[float]] = {model.name: [] for model in models}
    for file in [images[0], *images]:  # the first is for warming up
        image, properties = SimpleITKIO().read_images([str(file)])
        for name, predictor in predictors.items():
            started = time.perf_counter()
            predictor.predict_single_npy_array(image, properties)
            took[name].append(1000 * (time.perf_counter() - started))
    return {name: median(times[1:]) for name, times in took.items()}


def measure(output: Path) -> list[dict[str, Any]]:
    """One row per model: Dice per structure and mean, parameters, FLOPs per patch, milliseconds per case. Also written
    to results.json."""
    with contextlib.redirect_stdout(io.StringIO()):
        times = ms_per_case(MODELS, output)
    rows = []
    for model in MODELS:
        plans, dataset_json = read_plans(model, output)
        dice = evaluate(model, output)
        cost = network_cost(plans, CONFIGURATION, dataset_json)
        structures = {name: dice["mean"][label]["Dice"] for name, label in dataset_json["labels"].items() if label}
        rows.append(
            {
                "model": model.name,
                "dice": structures,
                "mean_dice": dice["foreground_mean"]["Dice"],
                "params": cost.params,
                "flops": cost.flops,
                "ms_per_case": times[model.name],
            }
        )
    (output / "results.json").write_text(json.dumps(rows, indent=2) + "\n")
    return rows


def table_of(rows: list[dict[str, Any]]) -> Table:
    structures = list(rows[0]["dice"])
    title = "Held-aside hippocampus cases, predicted by stock nnU-Net on this CPU"
    table = Table(
        "model", *(f"Dice {s}" for s in structures), "mean Dice", "parameters", "GFLOPs/patch", "ms/case", title=title
    )
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        table.add_row(
            row["model"],
            *(f"{row['dice'][s]:.3f}" for s in structures),
            f"{row['mean_dice']:.3f}",
            format_count(row["params"]),
            f"{row['flops'] / 1e9:.2f}",
            f"{row['ms_per_case']:.0f}",
        )
    return table


def picture(output: Path) -> Path:
    """Three held-aside cases, the slice with most hippocampus: image, ground truth, and what each model says."""
    raw = output / "raw" / DATASET
    cases = [f.name.removesuffix(".nii.gz") for f in sorted((raw / "labelsTs").glob("*.nii.gz"))][::3]
    columns = ["image", "ground truth", *(model.name for model in MODELS)]
    figure, axes = plt.subplots(
        len(cases), len(columns), figsize=(2.6 * len(columns), 3.1 * len(cases)), layout="constrained", squeeze=False
    )
    for row, case in zip(axes, cases, strict=True):
        image = SimpleITKIO().read_images([str(raw / "imagesTs" / f"{case}_0000.nii.gz")])[0][0]
        truth = _read_labels(raw / "labelsTs" / f"{case}.nii.gz")
        overlays = [None, truth, *(_read_labels(m.predictions(output) / f"{case}.nii.gz") for m in MODELS)]
        index = int((truth > 0).sum(axis=(1, 2)).argmax())
        for axis, overlay in zip(row, overlays, strict=True):
            axis.imshow(image[index], cmap="gray", origin="lower")
            for label, colour in COLOURS.items():
                if overlay is not None and (overlay[index] == label).any():
                    axis.contour(overlay[index] == label, levels=[0.5], colors=colour, linewidths=1.5)
            axis.set(xticks=[], yticks=[])
        row[0].set_ylabel(case)
    for axis, title in zip(axes[0], columns, strict=True):
        axis.set_title(title)
    file = output / "comparison.png"
    figure.savefig(file, dpi=110)
    plt.close(figure)
    return file


def _read_labels(file: Path) -> np.ndarray:
    return SimpleITKIO().read_seg(str(file))[0][0]
