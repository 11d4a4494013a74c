"""Check that the JSON files of a store have the form in which they are written."""

from collections.abc import Iterator
from typing import Any

from nnunetv2_kd.nnunet.model_files import is_plain_name, printable

TEXTS = ("folder", "fold", "checkpoint", "sha256", "trainer")  # keys that every teacher has


def header_problems(header: Any) -> Iterator[str]:
    """The problems of a header, one line each."""
    if not isinstance(header, dict):
        yield f"expected keys with values, found {type(header).__name__}"
        return
    for key in ("dataset", "data_identifier", "command"):
        if not isinstance(header.get(key), str):
            yield f"{key}: expected text, found {printable(header.get(key))}"
    heads, labels = header.get("heads"), header.get("labels")
    if not (isinstance(heads, list) and len(heads) == 2 and type(heads[0]) is int and type(heads[1]) is bool):
        yield f"heads: expected a number, and whether they overlap, found {printable(heads)}"
    if not isinstance(labels, list) or not all(map(_is_pair, labels)) or "regions_class_order" not in header:
        yield "labels, regions_class_order: expected those of a dataset.json"
    cases = header.get("cases")
    if not isinstance(cases, list) or not all(map(is_plain_name, cases)):
        yield "cases: expected names of cases"
    known = header.get("known", [])
    if not isinstance(known, list) or not all(type(one) is int and 0 <= one < 2**16 for one in known):
        yield f"known: expected numbers of structures, found {printable(known)}"
    teachers = header.get("teachers")
    if not isinstance(teachers, list) or not teachers:
        yield "teachers: expected one or several"
        return
    yield from (f"teachers: {line}" for teacher in teachers for line in _teacher_problems(teacher))


def _is_pair(pair: Any) -> bool:
    return isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str) and isinstance(pair[1], (int, list))


def _teacher_problems(teacher: Any) -> Iterator[str]:
    if not isinstance(teacher, dict):
        yield f"expected keys with values, found {printable(teacher)}"
        return
    for key in TEXTS:
        if type(teacher.get(key)) is not str:
            yield f"{key}: expected text, found {printable(teacher.get(key))}"
    fold = teacher.get("fold")
    if isinstance(fold, str) and fold != "all" and not (fold.isdecimal() and len(fold) < 6):
        yield f"fold: expected a number or all, found {printable(fold)}"
    for key in ("epoch", "params"):
        if not isinstance(teacher.get(key), (int, type(None))):
            yield f"{key}: expected a whole number, found {printable(teacher[key])}"
    if not _is_fingerprint(teacher.get("fingerprint")):
        yield f"fingerprint: expected size, time and SHA-256, found {printable(teacher.get('fingerprint'))}"
    stages = teacher.get("stages")
    if not isinstance(stages, dict) or not all(isinstance(stride, list) for stride in stages.values()):
        yield f"stages: expected names with strides, found {printable(stages)}"
    for key, kind in (("mirroring", list), ("training_cases", dict), ("weight", (int, float)), ("known", list)):
        if key in teacher and not isinstance(teacher[key], kind):
            yield f"{key}: found {printable(teacher[key])}"
    if "mirroring" not in teacher:
        yield "mirroring: is missing"


def _is_fingerprint(value: Any) -> bool:
    kinds = {"size": int, "mtime_ns": int, "sha256": str}
    return isinstance(value, dict) and all(type(value.get(key)) is kind for key, kind in kinds.items())


def is_case_record(record: Any, case: str) -> bool:
    """Whether a case's record has the form in which it is written."""
    if not isinstance(record, dict):
        return False
    files, data, dice = record.get("files"), record.get("data"), record.get("dice")
    return (
        isinstance(files, dict)
        and files.keys() == {f"{case}.b2nd", f"{case}.npz"}
        and isinstance(data, dict)
        and all(is_plain_name(name) for name in data)
        and all(_is_fingerprint(known) for known in (*files.values(), *data.values()))
        and isinstance(record.get("error"), (int, float))
        and isinstance(dice, list)
        and all(isinstance(value, (int, float, type(None))) for value in dice)
    )
