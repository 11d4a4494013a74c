"""Which folds of a model folder belong to one model. All do, unless one was trained with another network or method, or
on a teacher's share of another fold's training cases."""

import json
from collections.abc import Sequence
from dataclasses import replace

from nnunetv2_kd.nnunet.plans import Plans
from nnunetv2_kd.nnunet.splits import Split
from nnunetv2_kd.nnunet.trained_models import TrainedFold, TrainedModel
from nnunetv2_kd.record import Record
from nnunetv2_kd.trainers.same_method import method_differences, method_of, network_differences


def split_students(model: TrainedModel, splits: Sequence[Split] = ()) -> list[TrainedModel]:
    """The model, or several if its folds do not belong together. The first keeps the name, and has the folds whose
    network is that of the folder's plans.json.

    Args:
        model: all folds of one folder.
        splits: ``splits_final.json``; empty: not known, and no fold counts as a share.
    """
    groups: dict[tuple[str, str, str], list[TrainedFold]] = {}
    for fold in model.folds:
        if fold.is_trained:
            groups.setdefault(_group(model, fold, splits), []).append(fold)
    main = next((key for key in groups if key[:2] == ("", "")), None)
    others = groups[main][0].record if main is not None else None
    parts = [_part(model, groups[key], key, others) for key in groups if key != main]
    if not parts:
        return [model]
    own = {fold.name for key, folds in groups.items() if key != main for fold in folds}
    kept = tuple(fold for fold in model.folds if fold.name not in own)
    return ([replace(model, folds=kept)] if kept else []) + parts


def share_of(fold: str, splits: Sequence[Split]) -> str:
    """If a fold was trained on a share of another fold's training cases, that other fold; otherwise empty.
    ``split-teachers`` gives a share the validation cases of the fold that it shares out."""
    if not fold.isdigit() or int(fold) >= len(splits):
        return ""
    mine = splits[int(fold)]["val"]
    return next((str(i) for i, split in enumerate(splits[: int(fold)]) if mine and split["val"] == mine), "")


def _group(model: TrainedModel, fold: TrainedFold, splits: Sequence[Split]) -> tuple[str, str, str]:
    """What must be equal within one model: share, network and method."""
    share = fold.name if share_of(fold.name, splits) else ""
    network = _network(model, fold)
    method = json.dumps(method_of(fold.record, across_folds=True), sort_keys=True) if fold.record is not None else ""
    return share, network, method


def _network(model: TrainedModel, fold: TrainedFold) -> str:
    """How the fold's network differs from plans.json; empty if it does not, or the checkpoint does not tell."""
    if (
        fold.plans is None
        or not _has_configuration(fold.plans, model.configuration)
        or not _has_configuration(model.plans, model.configuration)
    ):
        return ""
    places = ("in plans.json", "in its checkpoint")
    try:
        return "; ".join(network_differences(model.plans, fold.plans, model.configuration, places))
    except Exception:  # nnU-Net may raise anything on plans that it did not write; reported when the model is compared
        return ""


def _has_configuration(plans: Plans, configuration: str) -> bool:
    return configuration in plans.get("configurations", {})


def _part(
    model: TrainedModel, folds: list[TrainedFold], key: tuple[str, str, str], others: Record | None
) -> TrainedModel:
    """A model of some of the folds, with the reason why they are separate from the others, whose record is given."""
    share, network, _ = key
    names = [fold.name for fold in folds]
    part = f"__fold{'s' if len(names) > 1 else ''}_{'_'.join(names)}"
    if share:
        apart = "trained on a share of a fold's training cases, so it is not a fold of a cross-validation"
    elif network:
        apart = f"its network is not the one in the folder's plans.json ({network})"
    else:
        mine, places = folds[0].record, ("there", "here")
        differences = method_differences(others, mine, True, places) if others is not None and mine is not None else []
        apart = (
            f"trained by another method than the other folds in its folder ({'; '.join(differences) or 'no record'})"
        )
    made = replace(model, folds=tuple(folds), part=part, apart=apart)
    plans = folds[0].plans
    if not network or plans is None:
        return made
    why = "its folder's plans.json describes another network, so nnU-Net cannot load it; train it again under a name"
    return replace(made, plans=plans, unpredictable=why)
