"""A model card for an exported model: what it segments, where it comes from, how good and how large it is."""

import json
import math
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunetv2_kd import __version__
from nnunetv2_kd.formatting import format_count, markdown_escaped, markdown_line
from nnunetv2_kd.inference.agreement import NSD_TOLERANCE, Agreement
from nnunetv2_kd.inference.device import device_name
from nnunetv2_kd.inference.runtimes import package_version
from nnunetv2_kd.networks.cost import network_cost
from nnunetv2_kd.nnunet.checkpoint import read_checkpoint
from nnunetv2_kd.nnunet.files import read_json

if TYPE_CHECKING:
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    from nnunetv2_kd.inference.export import ExportRequest

CARD, CARD_JSON = "MODEL_CARD.md", "model_card.json"
# keys that reveal where something was made or stored, and by whom
ORIGIN_KEYS = {"folder", "command", "hostname", "host", "device", "cuda_device", "path", "cases", "kd"}
NOT_STATED = "not stated"


def without_origin(value: Any) -> Any:
    """A copy of plain values, without paths and without keys that reveal where something was made."""
    if isinstance(value, dict):
        kept = {key: without_origin(entry) for key, entry in value.items() if key not in ORIGIN_KEYS}
        return {key: entry for key, entry in kept.items() if not _is_path(entry)}
    if isinstance(value, (list, tuple)):
        return [without_origin(entry) for entry in value if not _is_path(entry)]
    return value


def _is_path(value: Any) -> bool:
    return isinstance(value, str) and (value.startswith(("/", "~", "\\")) or value[1:3] == ":\\")


def card_of(
    folder: Path, about: dict[str, Any], request: "ExportRequest", reference: "nnUNetPredictor", found: Agreement
) -> dict[str, Any]:
    """The card as plain values."""
    import torch

    first = read_checkpoint(request.model / f"fold_{request.folds[0]}" / request.checkpoint)
    plans, dataset_json = read_json(request.model / "plans.json"), reference.dataset_json
    cost = network_cost(plans, about["configuration"], dataset_json)
    configuration = reference.configuration_manager
    sizes = {str(f.relative_to(folder)): f.stat().st_size for f in sorted(folder.rglob("*")) if f.is_file()}
    record = without_origin(first.get("kd") or {})
    return {
        "task": {
            "dataset": request.model.parent.name,
            "description": dataset_json.get("description", ""),
            "channels": dataset_json.get("channel_names", dataset_json.get("modality")),
            "labels": dataset_json["labels"],
            "regions_class_order": dataset_json.get("regions_class_order"),
            "training_cases": dataset_json.get("numTraining"),
            "data_licence": dataset_json.get("licence", dataset_json.get("license", NOT_STATED)),
        },
        "model": {
            "name": request.model.name,
            "folds": list(request.folds),
            "epochs": first.get("current_epoch"),
            "checkpoints_sha256": about["checkpoints"],
            "network": configuration.network_arch_class_name.split(".")[-1],
            "channels": configuration.network_arch_init_kwargs.get("features_per_stage"),
            "patch_size": list(configuration.patch_size),
            "spacing_mm": list(configuration.spacing),
            "normalization": list(configuration.normalization_schemes),
            "mirroring_axes": about["mirroring_axes"],
            "parameters": cost.params,
            "gflops_per_patch": cost.flops / 1e9,
        },
        "distillation": record or None,
        "export": {"format": request.format, "precision": request.precision, "bytes": sizes},
        "quality": {
            "cases": found.cases,
            "of": "given images" if request.images is not None else f"validation of fold {request.folds[0]}",
            "dice": _number(found.dice[1]),
            f"nsd_{NSD_TOLERANCE:g}mm": _number(found.nsd[1]),
        },
        "speed": {
            "ms_per_case_pytorch": found.ms[0],
            "ms_per_case_export": found.ms[1],
            "processor": device_name(torch.device("cpu")),
            "note": "from preprocessing to segmentation, with the model's mirroring; measured once, with any other "
            "load",
        },
        "versions": {
            "nnunetv2_kd": __version__,
            "python": platform.python_version(),
            **{name: package_version(name) for name in ("nnunetv2", "torch", "openvino", "onnx", "onnxruntime")},
        },
        "intended_use": request.intended_use or NOT_STATED,
        "licence": request.licence or NOT_STATED,
    }


def write_card(
    folder: Path, about: dict[str, Any], request: "ExportRequest", reference: "nnUNetPredictor", found: Agreement
) -> None:
    """Write ``MODEL_CARD.md`` and ``model_card.json``."""
    card = card_of(folder, about, request, reference, found)
    (folder / CARD_JSON).write_text(json.dumps(card, indent=2) + "\n")
    (folder / CARD).write_text(as_markdown(card))


def as_markdown(card: dict[str, Any]) -> str:
    """The card as a page."""
    task, model, export, quality, speed = (card[key] for key in ("task", "model", "export", "quality", "speed"))
    nsd = next(key for key in quality if key.startswith("nsd"))
    lines = [
        f"# {markdown_escaped(task['dataset'])}: {markdown_escaped(model['name'])}",
        "",
        f"**Intended use:** {markdown_escaped(card['intended_use'])}",
        "",
        f"**Licence of the model:** {markdown_escaped(card['licence'])}. "
        f"**Of the training data:** {markdown_escaped(str(task['data_licence']))}",
        "",
        "## Task",
        "",
        markdown_escaped(str(task["description"] or "")) or f"Segmentation, trained on {task['training_cases']} cases.",
        "",
        *_table(("label", "value"), task["labels"].items()),
        "",
        f"Input channels: {markdown_escaped(', '.join(map(str, (task['channels'] or {}).values())))}.",
        "",
        "## Model",
        "",
        *_table(("", ""), ((key.replace("_", " "), value) for key, value in model.items() if key != "parameters")),
        f"| parameters | {format_count(model['parameters'])} |",
        "",
        "## Quality",
        "",
        f"{quality['cases']} cases ({quality['of']}), predicted by this export.",
        "",
    ]
    if quality["dice"]:
        rows = [
            (name, _format_value(value), _format_value(quality[nsd][name])) for name, value in quality["dice"].items()
        ]
        lines += _table(("structure", "Dice", f"surface Dice at {NSD_TOLERANCE:g} mm"), rows)
    else:
        lines += ["No ground truth was given, so the accuracy is not known."]
    lines += [
        "",
        "## Size and speed",
        "",
        *_table(("file", "bytes"), export["bytes"].items()),
        "",
        f"{speed['ms_per_case_export']:.0f} ms per case ({export['format']}, {export['precision']}), in PyTorch "
        f"{speed['ms_per_case_pytorch']:.0f} ms, on {speed['processor']}: {speed['note']}.",
        "",
        "## Where it comes from",
        "",
    ]
    if card["distillation"]:
        lines += ["```json", json.dumps(card["distillation"], indent=2).replace("`", "\\u0060"), "```"]
    else:
        lines += ["Trained by nnU-Net without a teacher of this package."]
    lines += ["", "## Versions", "", *_table(("package", "version"), card["versions"].items()), ""]
    return "\n".join(lines)


def _table(headings: tuple[str, ...], rows: Any) -> list[str]:
    lines = [headings, tuple("---" for _ in headings), *rows]
    return [markdown_line([markdown_escaped(str(cell)) for cell in line]) for line in lines]


def _number(values: dict[str, float]) -> dict[str, float | None]:
    return {name: None if math.isnan(value) else value for name, value in values.items()}


def _format_value(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
