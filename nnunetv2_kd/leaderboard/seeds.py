"""One row for trainings that differ only in their seed: their mean, and how much they vary."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile

import pandas as pd

from nnunetv2_kd.leaderboard.compare import model_scores
from nnunetv2_kd.leaderboard.evaluate import Evaluation
from nnunetv2_kd.nnunet.model_folder import parse_model_name
from nnunetv2_kd.nnunet.plans import resolved_configuration
from nnunetv2_kd.nnunet.trained_models import TrainedModel
from nnunetv2_kd.trainers.same_method import NETWORK, method_of


@dataclass(frozen=True)
class Seeds:
    """The trainings behind one row.

    Attributes:
        names: of the models, first the one whose name the row has.
        seeds: in the same order.
        dice: mean Dice of each; nan if it has no score.
        sd: their sample standard deviation; nan if fewer than two have a score.
    """

    names: tuple[str, ...]
    seeds: tuple[int, ...]
    dice: tuple[float, ...]
    sd: float


def pool_seeds(evaluation: Evaluation) -> tuple[Evaluation, dict[str, Seeds]]:
    """Merge models that differ only in their seed into one, under the name of the model with the smallest seed. It has
    the scores of all, so that its mean is the mean over seeds.

    Args:
        evaluation: of one dataset.

    Returns:
        The evaluation with fewer models, and the trainings behind each merged model, by name.
    """
    found: dict[str, Seeds] = {}
    renamed: dict[str, str] = {}
    scored = set(evaluation.scores.model)  # one that was not validated stays a row of its own, with the reason
    for group in _groups([model for model in evaluation.models if model.name in scored]):
        dice = [model_scores(evaluation.scores, m.name, evaluation.structures).mean_dice for m in group]
        first = group[0].name
        found[first] = Seeds(
            tuple(m.name for m in group), tuple(_seed(m) for m in group), tuple(dice), float(pd.Series(dice).std())
        )
        renamed |= {m.name: first for m in group[1:]}
    if not found:
        return evaluation, {}
    models = [model for model in evaluation.models if model.name not in renamed]
    scores = evaluation.scores.assign(model=evaluation.scores.model.replace(renamed))
    return replace(evaluation, models=models, scores=scores), found


def row_of(name: str, seeds: Mapping[str, Seeds]) -> str:
    """The name of the row that a model is part of; its own if it is not merged."""
    return next((first for first, of_one in seeds.items() if name in of_one.names), name)


def common_plans_name(seeds: Seeds) -> str:
    """The common beginning of the plans' names, without the separator before the seed: ``nnUNetPlans_emkd`` for
    ``nnUNetPlans_emkd_s0`` and ``nnUNetPlans_emkd_s1``."""
    plans = [parts.plans for name in seeds.names if (parts := parse_model_name(name)) is not None]
    alike = takewhile(lambda letters: len(set(letters)) == 1, zip(*plans, strict=False))
    return re.sub(r"[_-]+(s|seed)?[_-]*$", "", "".join(letters[0] for letters in alike))


def _groups(models: Sequence[TrainedModel]) -> list[list[TrainedModel]]:
    groups: dict[str, list[TrainedModel]] = {}
    for model in models:
        if model.record is not None and model.record.options.get("seed") is not None and not model.part:
            groups.setdefault(_all_but_seed(model), []).append(model)
    return [group for of_one in groups.values() if len(group := _one_per_seed(of_one)) > 1]


def _one_per_seed(models: Sequence[TrainedModel]) -> list[TrainedModel]:
    """One model per seed. Of several trainings with the same seed, take the one that was given a name, like the others
    of a series; the rest remain rows of their own."""
    named_first = sorted(models, key=lambda model: (_seed(model), _name(model) == "", model.name))
    return list({_seed(model): model for model in reversed(named_first)}.values())[::-1]


def _name(model: TrainedModel) -> str:
    return str(model.record.options.get("name") or "") if model.record is not None else ""


def _seed(model: TrainedModel) -> int:
    return int(model.record.options["seed"]) if model.record is not None else 0


def _all_but_seed(model: TrainedModel) -> str:
    """What trainings must share to be one row: method, network, folds, and the teachers' checkpoints."""
    if model.record is None:
        return model.name
    method = {key: value for key, value in method_of(model.record, across_folds=True).items() if key != "seed"}
    try:
        plans = resolved_configuration(model.plans, model.configuration)
    except Exception:  # nnU-Net may raise anything on plans that it did not write
        return model.name
    network = {key: plans.get(key) for key in NETWORK}
    folds = [fold.name for fold in model.trained_folds]
    teachers = sorted(teacher.sha256 for teacher in model.teachers)
    return json.dumps([model.configuration, model.runs_in, method, network, folds, teachers], sort_keys=True)
