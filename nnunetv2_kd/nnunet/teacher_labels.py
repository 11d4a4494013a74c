"""Which cases of a dataset a teacher labelled. This is recorded in its dataset.json under ``teacher_labels``; nnU-Net
copies that file into everything that it makes from the dataset."""

from collections.abc import Iterable, Mapping
from typing import Any

KEY = "teacher_labels"


def teacher_labelled(dataset_json: Mapping[str, Any]) -> frozenset[str]:
    """Names of the cases that a teacher labelled; empty if people labelled all."""
    return frozenset((dataset_json.get(KEY) or {}).get("cases", ()))


def labelling_teachers(dataset_json: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The models that labelled them, as in `record.TeacherRecord`, except for what depends on the fold."""
    return list((dataset_json.get(KEY) or {}).get("teachers", ()))


def agreement_note(dataset_json: Mapping[str, Any], validation: Iterable[str]) -> str:
    """What Dice on these validation cases means if a teacher labelled any of them; otherwise empty."""
    cases = list(validation)
    of_teacher = sum(case in teacher_labelled(dataset_json) for case in cases)
    if not of_teacher:
        return ""
    if of_teacher == len(cases):
        return "agreement with the teacher that labelled the validation cases, not accuracy"
    return f"in part agreement with the teacher, which labelled {of_teacher} of the {len(cases)} validation cases"


def labels_without_ignore(dataset_json: Mapping[str, Any]) -> dict[str, Any]:
    """What a network predicts, by name: a label's value, or the tuple of a region's values."""
    return {
        str(name): tuple(map(int, value)) if isinstance(value, (list, tuple)) else int(value)
        for name, value in dataset_json.get("labels", {}).items()
        if name != "ignore"
    }
