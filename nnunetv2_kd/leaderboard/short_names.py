"""Names of models that are short enough for tables and plots."""

from collections.abc import Mapping, Sequence

from nnunetv2_kd.leaderboard.seeds import Seeds, common_plans_name
from nnunetv2_kd.nnunet.trained_models import TrainedModel


def short_names(models: Sequence[TrainedModel], seeds: Mapping[str, Seeds] | None = None) -> dict[str, str]:
    """Names without nnU-Net's common prefixes, and without the configuration if all models share it. If the short names
    would be ambiguous, full names are kept.

    Args:
        models: of one dataset.
        seeds: the trainings behind each merged row, by the model's name.

    Returns:
        The short name, by the full name.
    """
    parts = {
        model.name: [
            model.trainer.removeprefix("nnUNetTrainer") or model.trainer,
            _short_plans(model, (seeds or {}).get(model.name)),
            *([] if _share_configuration(models) else [model.configuration]),
            *([model.part.strip("_").replace("_", " ")] if model.part else []),
            *([model.runs_in] if model.runs_in else []),
        ]
        for model in models
    }
    short = {name: " · ".join(of_model) for name, of_model in parts.items()}
    for name, of_row in (seeds or {}).items():
        short[name] += f" · {len(of_row.names)} seeds"
    return short if len(set(short.values())) == len(models) else {name: name for name in short}


def explain_short_names(models: Sequence[TrainedModel]) -> list[str]:
    """How to read the short names; nothing if they are the full names."""
    if all(name == short for name, short in short_names(models).items()):
        return []
    share = _share_configuration(models)
    configuration = f"; all are {models[0].configuration}" if share else ""
    parts = f"{'' if share else ' · configuration'}{' · runtime' if any(model.runs_in for model in models) else ''}"
    return [f"Models are trainer · plans{parts}, without the leading nnUNetTrainer and nnUNetPlans{configuration}."]


def _short_plans(model: TrainedModel, seeds: Seeds | None) -> str:
    whole = common_plans_name(seeds) if seeds is not None else model.plans_name
    return whole.removeprefix("nnUNetPlans").lstrip("_") or whole


def _share_configuration(models: Sequence[TrainedModel]) -> bool:
    return len({model.configuration for model in models}) == 1
