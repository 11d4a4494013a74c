"""A student's checkpoint is a plain nnU-Net checkpoint: it can be loaded, and predicts, without this package."""

import shlex
from pathlib import Path
from typing import Any

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_kd.config import OptimizerOptions, Schedule
from nnunetv2_kd.errors import KDError, listing
from nnunetv2_kd.formatting import format_count
from nnunetv2_kd.networks.cost import network_cost
from nnunetv2_kd.nnunet.checkpoint import read_checkpoint
from nnunetv2_kd.nnunet.files import read_json
from nnunetv2_kd.nnunet.model_folder import OPTIONS_FILE
from nnunetv2_kd.record import Record, read_record
from nnunetv2_kd.trainers.command_line import restart_command
from nnunetv2_kd.trainers.trained_parts import split_optimizer_state


def stock_name(trainer: type) -> str:
    """Name of the trainer class that defines ``build_network_architecture``. nnU-Net looks it up to build the network
    for prediction, and needs nothing else from it."""
    definers = (c for c in trainer.__mro__ if "build_network_architecture" in vars(c))
    return next(definers, nnUNetTrainer).__name__


def base_trainers(trainer: type) -> list[str]:
    """Names of the nnU-Net trainers that a trainer with `DistillationMixin` extends, without their own bases."""
    found: list[type] = []
    for base in trainer.__mro__:
        distils = hasattr(base, "distils")  # of the mixin, which imports this module
        if issubclass(base, nnUNetTrainer) and not distils and not any(issubclass(one, base) for one in found):
            found.append(base)
    return [base.__name__ for base in found]


def make_stock(
    checkpoint: dict[str, Any], name: str, trainer_name: str, record: Record, added: int, state: dict[str, Any]
) -> dict[str, Any]:
    """Turn a checkpoint of our trainer into one of stock nnU-Net.

    Args:
        checkpoint: changed in place.
        name: of its file.
        trainer_name: the stock trainer's name.
        record: where the student comes from; stored as plain values under the key ``kd``.
        added: how many parameters of ours are in the optimizer's last group.
        state: tensors and plain values that only a resumed training needs. Stored under the key ``kd_training``, but
            only in checkpoint_latest.pth, which nnU-Net deletes at the end.
    """
    checkpoint["trainer_name"] = trainer_name
    checkpoint["kd"] = record.as_dict()
    checkpoint["optimizer_state"], of_added = split_optimizer_state(checkpoint["optimizer_state"], added)
    if name == "checkpoint_latest.pth":
        checkpoint["kd_training"] = {**state, "adapters_optimizer": of_added}
    return checkpoint


def check_same_size(
    file: Path, plans: dict[str, Any], configuration: str, dataset_json: dict[str, Any], plans_file: Path | None = None
) -> tuple[Record | None, dict[str, Any]]:
    """Check that the checkpoint to resume from, or to validate, has a student of this size.

    Args:
        file: the checkpoint.
        plans: of the student that the command asks for now.
        configuration, dataset_json: as in nnU-Net.
        plans_file: the file that gives the size; None: the options give it.

    Returns:
        The checkpoint's record (None if it has none), and the state that only a resumed training needs.

    Raises:
        KDError: shows both sizes, or what cannot be read in the record.
    """
    checkpoint = read_checkpoint(file, trust=True, mend=_without(file))  # as nnU-Net is about to read it
    before = checkpoint["init_args"]["plans"]
    if _architecture(before, configuration) == _architecture(plans, configuration):
        record = read_record(checkpoint["kd"], str(file)) if checkpoint.get("kd") else None
        return record, checkpoint.get("kd_training", {})
    raise KDError(
        f"The student in {file} has another size than the one asked for now:"
        f"\n  in the checkpoint: {_size(before, configuration, dataset_json)}"
        f"\n  asked for now:     {_size(plans, configuration, dataset_json)}"
        f"\n{_same_size_again(file, before, plans_file)}"
    )


def _without(file: Path) -> str:
    """How to continue if a checkpoint of a training is damaged."""
    others = (
        "checkpoint_final.pth",
        "checkpoint_latest.pth",
        "checkpoint_best.pth",
    )  # in the order in which --c looks for them
    there = [name for name in others if name != file.name and (file.parent / name).is_file()]
    away = f"mv {shlex.quote(str(file))} {shlex.quote(f'{file}.damaged')}"
    if not there:
        return "This training has no other checkpoint: start again with the same command without --c."
    return f"There is also {there[0]}, from which --c continues once the damaged one is moved away: {away}"


def _same_size_again(file: Path, before: dict[str, Any], plans_file: Path | None) -> str:
    """How to get a student of the checkpoint's size again."""
    if plans_file is None:
        options = file.parent.absolute() / OPTIONS_FILE
        return f"Repeat the options it was trained with: export nnUNet_kd_config='{options}'"
    kept = file.parent.parent.absolute() / "plans.json"
    if kept.is_file() and read_json(kept)["configurations"] == before["configurations"]:
        return f"{plans_file} has changed since. Put back the plans it was trained with: cp '{kept}' '{plans_file}'"
    return f"{plans_file} has changed since, and there is no copy of the plans it was trained with: train it again."


METHOD = (
    "teacher",
    "teachers",
    "stored_teacher",
    "combine",
    "terms",
    "schedule",
    "balance",
    "ema",
    "optimizer",
    "mirroring",
)


def check_same_method(before: Record | None, options: dict[str, Any], folder: str) -> None:
    """Check that a training is resumed with the same teacher, terms, schedule and optimizer.

    Args:
        before: the record in the checkpoint; None if nothing is resumed.
        options: the current options, as plain values.
        folder: the fold's output folder, which holds the options file of the training.

    Raises:
        KDError: shows what differs, both sides.
    """
    if before is None:
        return
    then, options = recorded_options(before), without_trust(options)
    differing = [
        f"{key}: {then.get(key)} in the checkpoint, {options.get(key)} now"
        for key in METHOD
        if then.get(key) != options.get(key)
    ]
    if differing:
        raise KDError(
            listing("The training to resume was started with other options:", differing)
            + f"\nRepeat them: export nnUNet_kd_config='{Path(folder).absolute() / OPTIONS_FILE}'"
        )


def check_same_teachers(before: Record | None, now: Record, folder: str) -> None:
    """Check that a training is resumed with the same checkpoints that taught it before, even if others have taken their
    place.

    Args:
        before: the record in the checkpoint; None if nothing is resumed.
        now: the record of the teachers that are loaded.
        folder: the fold's output folder.

    Raises:
        KDError: shows the SHA-256 of both.
    """
    if before is None:
        return
    mine, others = (sorted(teacher.sha256 for teacher in record.teachers) for record in (before, now))
    if mine != others:
        where = ", ".join(sorted({f"{t.folder}, fold {t.fold}, {t.checkpoint}" for t in now.teachers}))
        raise KDError(
            f"The training to resume in {folder} was taught by another checkpoint than the one that is there now:"
            f"\n  until now, SHA-256: {' '.join(mine)}\n  now, SHA-256:       {' '.join(others)}\n  ({where})"
            f"\nPut the earlier one back, or start again without --c:\n  " + restart_command(nnUNet_kd_overwrite="1")
        )


def recorded_options(record: Record) -> dict[str, Any]:
    """A record's options in today's form. Older records list every term, but no optimizer or mirroring, and lack what
    has joined the schedule since."""
    options = {"optimizer": OptimizerOptions().model_dump(mode="json"), "mirroring": "teacher"} | record.options
    if options.get("schedule"):
        options["schedule"] = Schedule().model_dump(mode="json") | options["schedule"]
    terms = options.get("terms") or {}
    return without_trust(options | {"terms": {name: term for name, term in terms.items() if term is not None}})


def without_trust(options: dict[str, Any]) -> dict[str, Any]:
    """Options without the teachers' ``trust``, which does not change the student. That key once had another name."""

    def of(teacher: Any) -> Any:
        keys = ("trust", "trust_pickle")
        return {k: v for k, v in teacher.items() if k not in keys} if isinstance(teacher, dict) else teacher

    teachers = options.get("teachers")
    named = {"teacher": of(options["teacher"])} if "teacher" in options else {}
    return options | named | ({"teachers": [of(teacher) for teacher in teachers]} if teachers else {})


def _architecture(plans: dict[str, Any], configuration: str) -> dict[str, Any]:
    return PlansManager(plans).get_configuration(configuration).configuration["architecture"]


def _size(plans: dict[str, Any], configuration: str, dataset_json: dict[str, Any]) -> str:
    features = _architecture(plans, configuration)["arch_kwargs"]["features_per_stage"]
    return f"{format_count(network_cost(plans, configuration, dataset_json).params)} parameters, channels {features}"
