"""The demo's results: one table and one picture."""

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
from rich.box import SIMPLE_HEAD
from rich.table import Table

from nnunetv2_kd.demo.run import CONFIGURATION, LABELLED_DATASET, MODELS, DemoModel, read_plans
from nnunetv2_kd.formatting import format_count
from nnunetv2_kd.inference.choose import use_runtime
from nnunetv2_kd.inference.predictor import FastPredictor
from nnunetv2_kd.networks.cost import network_cost
from nnunetv2_kd.nnunet.files import read_json
from nnunetv2_kd.nnunet.model_folder import RECORD_FILE

COLOURS = {1: "tab:red", 2: "tab:cyan"}


def evaluate(model: DemoModel, output: Path) -> dict[str, Any]:
    """nnU-Net's evaluation of a model's predictions on the held-out cases, as in summary.json."""
    predictions = model.predictions(output)
    return compute_metrics_on_folder(
        str(output / "raw" / LABELLED_DATASET / "labelsTs"),
        str(predictions),
        str(predictions / "summary.json"),
        SimpleITKIO(),
        ".nii.gz",
        list(COLOURS),
        num_processes=1,
    )


def ms_per_case(models: Sequence[DemoModel], output: Path) -> dict[str, dict[str, float]]:
    """Median milliseconds from image to segmentation (preprocessing, mirrored sliding window, resampling back) on the
    CPU, with nnU-Net's predictor and with that of ``nnUNetv2_kd predict``. All take turns on every case, so that other
    load on the machine affects all alike."""
    predictors: dict[tuple[str, str], nnUNetPredictor] = {}
    for model in models:
        folder = model.folder(output)
        for command, kind in (("stock", nnUNetPredictor), ("fast", FastPredictor)):
            predictor = kind(device=torch.device("cpu"), allow_tqdm=False)
            predictor.initialize_from_trained_model_folder(str(folder), [model.fold])
            predictors[model.name, command] = predictor
        use_runtime(predictors[model.name, "fast"], [folder / f"fold_{model.fold}" / "checkpoint_final.pth"])
    images = sorted((output / "raw" / LABELLED_DATASET / "imagesTs").glob("*.nii.gz"))
    took: dict[tuple[str, str], list[float]] = {key: [] for key in predictors}
    for file in [images[0], *images]:  # the first is a warm-up
        image, properties = SimpleITKIO().read_images([str(file)])
        for key, predictor in predictors.items():
            started = time.perf_counter()
            predictor.predict_single_npy_array(image, dict(properties))
            took[key].append(1000 * (time.perf_counter() - started))
    return {
        model.name: {command: median(took[model.name, command][1:]) for command in ("stock", "fast")}
        for model in models
    }


def differing_voxels(model: DemoModel, output: Path) -> int:
    """Number of voxels of the held-out cases in which the two commands differ."""
    files = sorted(model.predictions(output).glob("*.nii.gz"))
    return sum(int((_read_labels(f) != _read_labels(model.fast_predictions(output) / f.name)).sum()) for f in files)


def training_cases(model: DemoModel, output: Path, dataset_json: dict[str, Any]) -> tuple[int, int]:
    """Number of cases with labels, and of scans that the teacher labelled, that a model was trained on. The bundled
    teacher has no record; it was trained on all its data."""
    file = model.folder(output) / f"fold_{model.fold}" / RECORD_FILE
    if not file.is_file():
        return int(dataset_json["numTraining"]), 0
    record = read_json(file)
    scans = len(record["teacher_labels"]["cases"]) if record["teacher_labels"] else 0
    return int(record["training"]["cases"]) - scans, scans


def measure(output: Path) -> list[dict[str, Any]]:
    """One row per model: Dice per structure and mean, labelled cases and scans, parameters, FLOPs per patch,
    milliseconds per case, and voxels in which the two commands differ. Also written to results.json."""
    with contextlib.redirect_stdout(io.StringIO()):
        times = ms_per_case(MODELS, output)
    rows = []
    for model in MODELS:
        plans, dataset_json = read_plans(model, output)
        dice = evaluate(model, output)
        cost = network_cost(plans, CONFIGURATION, dataset_json)
        labelled, scans = training_cases(model, output, dataset_json)
        structures = {name: dice["mean"][label]["Dice"] for name, label in dataset_json["labels"].items() if label}
        rows.append(
            {
                "model": model.name,
                "labelled_cases": labelled,
                "scans": scans,
                "dice": structures,
                "mean_dice": dice["foreground_mean"]["Dice"],
                "params": cost.params,
                "flops": cost.flops,
                "ms_per_case": times[model.name]["stock"],
                "ms_per_case_fast": times[model.name]["fast"],
                "differing_voxels": differing_voxels(model, output),
            }
        )
    (output / "results.json").write_text(json.dumps(rows, indent=2) + "\n")
    return rows


def table_of(rows: list[dict[str, Any]]) -> Table:
    structures = list(rows[0]["dice"])
    table = Table(
        "model",
        "cases",
        *structures,
        "mean",
        "params",
        "stock",
        "fast",
        title="Dice on the held-out cases",
        caption="cases: for training, labelled + labelled by the teacher. stock, fast: milliseconds\n"
        "per case on this CPU with nnUNetv2_predict and with nnUNetv2_kd predict.",
        box=SIMPLE_HEAD,
        show_edge=False,
        collapse_padding=True,
        pad_edge=False,
    )
    for column in table.columns:
        column.no_wrap = True
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        table.add_row(
            row["model"],
            f"{row['labelled_cases']} + {row['scans']}" if row["scans"] else str(row["labelled_cases"]),
            *(f"{row['dice'][s]:.3f}" for s in structures),
            f"{row['mean_dice']:.3f}",
            format_count(row["params"]),
            f"{row['ms_per_case']:.0f}",
            f"{row['ms_per_case_fast']:.0f}",
        )
    return table


def sentences(rows: list[dict[str, Any]]) -> list[str]:
    """The table's results in sentences."""
    teacher, alone, distilled = rows
    smaller = teacher["params"] / distilled["params"]
    faster = teacher["ms_per_case"] / distilled["ms_per_case_fast"]
    lost = teacher["mean_dice"] - distilled["mean_dice"]
    gain = distilled["mean_dice"] - alone["mean_dice"]
    return [
        f"The distilled student has 1/{smaller:.0f} of the teacher's parameters, takes 1/{faster:.0f} of its time per "
        f"case, and has a Dice that is {lost:.3f} lower.",
        f"Compared with the student alone, which has the same {alone['labelled_cases']} labelled cases and as many "
        f"iterations, but not the {distilled['scans']} scans: {gain:+.3f}. This is one seed; for several see "
        "docs/results.md.",
        f"Voxels in which the two commands differ: {sum(row['differing_voxels'] for row in rows)}.",
    ]


def picture(output: Path, rows: list[dict[str, Any]]) -> Path:
    """Plot three held-out cases at the slice with most hippocampus: image, ground truth, and every prediction with its
    Dice and time.

    Args:
        output: the demo's folder.
        rows: from `measure`.
    """
    raw = output / "raw" / LABELLED_DATASET
    cases = [f.name.removesuffix(".nii.gz") for f in sorted((raw / "labelsTs").glob("*.nii.gz"))][::3]
    said = [
        f"Dice {row['mean_dice']:.3f}\nnnU-Net {row['ms_per_case']:.0f} ms, ours {row['ms_per_case_fast']:.0f} ms"
        for row in rows
    ]
    columns = ["image", "ground truth", *(f"{m.name}\n{words}" for m, words in zip(MODELS, said, strict=True))]
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
        axis.set_title(title, fontsize=10)
    file = output / "comparison.png"
    figure.savefig(file, dpi=110)
    plt.close(figure)
    return file


def _read_labels(file: Path) -> np.ndarray:
    return SimpleITKIO().read_seg(str(file))[0][0]
