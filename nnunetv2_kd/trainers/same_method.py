"""Whether two trainings use the same method. Only then may one replace the other, or may both be folds of one model."""

from collections.abc import Mapping
from typing import Any

from nnunetv2_kd.nnunet.plans import Plans, resolved_configuration
from nnunetv2_kd.record import Record
from nnunetv2_kd.trainers.checkpoint import METHOD, recorded_options

# the length of a training, from its record; older records have it among the options
LENGTH = ("epochs", "iterations_per_epoch")
# what determines the network and the voxels that it sees
NETWORK = ("architecture", "patch_size", "spacing", "normalization_schemes", "batch_size")
PLACES = ("there", "now")
AT_MOST = 8  # differences shown


def method_of(record: Record, across_folds: bool = False) -> dict[str, Any]:
    """What identifies a trained student: its options as flat keys, with the seed.

    Args:
        record: of its training.
        across_folds: leave out what differs between the folds of one model: the teacher's fold, and the store's name.
    """
    options = recorded_options(record)
    chosen = {key: options.get(key) for key in (*METHOD, "seed")}
    chosen["student.start"] = (options.get("student") or {}).get("start")
    chosen |= {key: getattr(record.training, key) if record.training else options.get(key) for key in LENGTH}
    chosen["trainer"] = record.trainer
    if across_folds:
        chosen["stored_teacher"] = "a store" if chosen["stored_teacher"] else None
    flat = _flat(chosen)
    if across_folds:
        flat = {key: value for key, value in flat.items() if not (key.startswith("teacher") and key.endswith(".fold"))}
    return {key: value for key, value in flat.items() if value is not None}


def method_differences(
    there: Record, now: Record, across_folds: bool = False, places: tuple[str, str] = PLACES
) -> list[str]:
    """How two trainings differ, such as ``terms.region_kl.weight: 3 there, 1 now``; empty for the same method."""
    return describe_differences(method_of(there, across_folds), method_of(now, across_folds), places)


def teacher_differences(there: Record, now: Record) -> list[str]:
    """Whether the teachers' checkpoints differ by SHA-256; a teacher that was trained with its student has none."""
    mine, others = (sorted(teacher.sha256 for teacher in record.teachers) for record in (there, now))
    if mine == others:
        return []
    return [f"teacher's checkpoint, SHA-256: {' '.join(mine) or 'none'} there, {' '.join(others) or 'none'} now"]


def network_differences(there: Plans, now: Plans, configuration: str, places: tuple[str, str] = PLACES) -> list[str]:
    """How the networks and inputs of two plans differ; empty if one can load the other's weights."""
    mine, others = (resolved_configuration(plans, configuration) for plans in (there, now))
    flat = [_flat({key: values.get(key) for key in NETWORK}) for values in (mine, others)]
    return describe_differences(flat[0], flat[1], places)


def describe_differences(
    there: Mapping[str, Any], now: Mapping[str, Any], places: tuple[str, str] = PLACES
) -> list[str]:
    """The first few differences between two flat mappings, in words.

    Args:
        there, now: the mappings.
        places: what to call them in the text.
    """
    keys = [key for key in dict.fromkeys([*there, *now]) if there.get(key) != now.get(key)]
    lines = [f"{key}: {_word(there.get(key))} {places[0]}, {_word(now.get(key))} {places[1]}" for key in keys[:AT_MOST]]
    return lines + ([f"and {len(keys) - AT_MOST} more"] if len(keys) > AT_MOST else [])


def _flat(values: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Flatten ``{"terms": {"kl": {"weight": 1}}}`` to ``{"terms.kl.weight": 1}``; lists of mappings count from 1."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, (list, tuple)) and any(isinstance(entry, Mapping) for entry in value):
            value = {str(number): entry for number, entry in enumerate(value, start=1)}
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{before}{key}.")
        else:
            flat[f"{before}{key}"] = list(value) if isinstance(value, tuple) else value
    return flat


def _word(value: Any) -> str:
    return "none" if value is None else str(value)
