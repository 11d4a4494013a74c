"""What a reader must know besides the numbers: short names, conventions, and what is missing."""

from collections.abc import Sequence

import pandas as pd

from nnunetv2_kd.leaderboard.scores import FAILED
from nnunetv2_kd.nnunet.trained_models import TrainedModel


def labels(models: Sequence[TrainedModel]) -> list[str]:
    """Names without what nnU-Net's names all begin with, and without the configuration where all share it; whole names
    where the short ones would not tell all models apart."""
    share = len({model.configuration for model in models}) == 1
    short = []
    for model in models:
        parts = [model.trainer.removeprefix("nnUNetTrainer") or model.trainer]
        parts.append(model.plans_name.removeprefix("nnUNetPlans") or model.plans_name)
        short.append(" · ".join(parts if share else [*parts, model.configuration]))
    return short if len(set(short)) == len(models) else [model.name for model in models]


def about_labels(models: Sequence[TrainedModel]) -> list[str]:
    """How to read the labels; nothing where they are the whole names."""
    if labels(models) == [model.name for model in models]:
        return []
    share = len({model.configuration for model in models}) == 1
    configuration = f"; all are {models[0].configuration}" if share else ""
    return [
        f"Models are trainer · plans{'' if share else ' · configuration'}, without the leading nnUNetTrainer and "
        f"nnUNetPlans{configuration}."
    ]


def about_reference(label: str, is_alone: bool, is_chosen: bool) -> str:
    """Which model the others are tested against, and why."""
    why = "the best student alone" if is_alone else "as there is no student alone, the best model"
    why = "chosen with --reference" if is_chosen else f"{why}; choose with --reference NAME"
    return f"Reference of the differences and tests: {label} ({why})."


def tell_rows(table: pd.DataFrame, problems: list[str]) -> None:
    """Add what the rows note to the problems, one line per model and note."""
    noted = table[table.note != ""]
    for (model, note), group in noted.groupby(["model", "note"], sort=False):
        state = "failed: " if (group.state == FAILED).all() else ""
        cases = sorted(group.case.unique())
        shown = ", ".join(cases[:3]) + (f" and {len(cases) - 3} more" if len(cases) > 3 else "")
        problems.append(f"{model}: {shown}: {state}{note}")


def conventions(tolerance: float) -> list[str]:
    """How the numbers are made, one line each."""
    return [
        "Dice is nnU-Net's: per structure the mean over cases, then the mean over structures (foreground_mean).",
        f"NSD: normalised surface Dice at a tolerance of {tolerance:g} mm. HD95: 95 % Hausdorff distance in mm. For "
        "images without a spacing (PNG and the like) both are in pixels.",
        "Structure empty in truth and prediction: Dice and NSD are not defined, counted as 'both empty', in no mean. "
        "Empty in one of both ('missed', 'false alarm'): Dice and NSD are 0, HD95 is not defined and in no mean. "
        "Compare HD95 between models only along with these counts.",
        "Intervals: 95 % percentile bootstrap over cases (2000 resamples, seed 0). They tell how much the cases "
        "matter, not how much a second training would differ.",
        "p: Wilcoxon signed-rank test on the mean Dice per case against the reference, two-sided, corrected for the "
        "number of models (Holm).",
        "Gap closed: (distilled − alone) / (teacher − alone) of the mean Dice; alone is the same student, plans and "
        "configuration without a teacher. Not defined where the teacher is not better than the student alone.",
    ]
