"""What exists for a dataset: its models fold by fold, its stores, and what is no longer of use. Reads only small files,
so that it is fast even with large models."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nnunetv2.paths import nnUNet_preprocessed, nnUNet_results

from nnunetv2_kd.errors import KDError
from nnunetv2_kd.leaderboard.fold_groups import share_of
from nnunetv2_kd.leaderboard.origin import ALONE, DISTILLED, STOCK, TEACHER
from nnunetv2_kd.nnunet.files import UNFINISHED, read_json
from nnunetv2_kd.nnunet.model_folder import FINAL, RECORD_FILE, fold_name, parse_model_name, trained_with
from nnunetv2_kd.nnunet.splits import Split, read_splits
from nnunetv2_kd.record import Record, read_record
from nnunetv2_kd.students.shrink import RECORD
from nnunetv2_kd.teachers.stored.store import HEADER, Store
from nnunetv2_kd.trainers.result_message import validation_dice
from nnunetv2_kd.trainers.start import CHECKPOINTS, REPLACED

JUST_NOW = 60  # seconds within which a validation leaves a file behind
MAY_RUN = 3600  # seconds; a folder that changed more recently may belong to a running training


@dataclass(frozen=True)
class FoldState:
    """One fold of a model. ``size`` is in bytes; ``dice`` is from nnU-Net's own validation, or None."""

    model: str
    fold: str
    kind: str
    method: str
    seed: int | None
    state: str
    dice: float | None
    size: int


@dataclass(frozen=True)
class StoreState:
    """One store of a teacher's predictions. ``size`` is in bytes."""

    name: str
    finished: int
    cases: int
    size: int
    teachers: str


@dataclass(frozen=True)
class Useless:
    """Something that can be thrown away. ``size`` is in bytes."""

    place: Path
    size: int
    why: str


@dataclass(frozen=True)
class Overview:
    """One dataset."""

    dataset: str
    folds: list[FoldState]
    stores: list[StoreState]
    useless: list[Useless]


def overview_of(dataset: str) -> Overview:
    """What exists for a dataset.

    Args:
        dataset: its full name.
    """
    results = Path(nnUNet_results) / dataset if nnUNet_results.is_set() else None
    data = Path(nnUNet_preprocessed) / dataset if nnUNet_preprocessed.is_set() else None
    folders = sorted(results.glob("*__*__*/fold_*")) if results is not None else []
    trained = [folder for folder in folders if any(folder.glob(CHECKPOINTS))]
    splits = read_splits(data) if data is not None and data.is_dir() else []
    records = {folder: _record(folder) for folder in trained}
    teaching = {
        str(Path(teacher.folder) / f"fold_{teacher.fold}")
        for record in records.values()
        if record is not None
        for teacher in record.teachers
    }
    return Overview(
        dataset=dataset,
        folds=[_fold_state(folder, records[folder], teaching, splits) for folder in trained],
        stores=[_store_state(folder) for folder in _stores(data)],
        useless=[*_useless_folds(folders), *_useless_stores(data), *_useless_plans(data)],
    )


def format_bytes(size: int) -> str:
    """A number of bytes with its unit: ``1536`` becomes ``1.5 KiB``.

    >>> format_bytes(1536)
    '1.5 KiB'
    """
    value = float(size)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"


def _fold_state(folder: Path, record: Record | None, teaching: set[str], splits: list[Split]) -> FoldState:
    teaches = str(folder) in teaching
    kind = TEACHER if teaches else STOCK
    if record is not None and not teaches:
        kind = DISTILLED if record.teachers or record.stored else ALONE
    parts = parse_model_name(folder.parent.name)
    return FoldState(
        model=folder.parent.name if parts is None else " · ".join(parts.shortened()),
        fold=fold_name(folder),
        kind=kind,
        method=_method(record, share_of(fold_name(folder), splits)),
        seed=record.options.get("seed") if record is not None else None,
        state=_state(folder),
        dice=validation_dice(folder),
        size=_size(folder),
    )


def _method(record: Record | None, share: str) -> str:
    of_share = f"share of fold {share}" if share else ""
    if record is None:
        return of_share
    terms = [name for name, term in (record.options.get("terms") or {}).items() if term]
    width = ", ".join(f"width {width:g}" for width in record.student.width.values())
    parts = [" + ".join(terms), width, of_share]
    return "; ".join(part for part in parts if part)


def _state(folder: Path) -> str:
    if (folder / FINAL).is_file():
        if (folder / "validation" / "summary.json").is_file():
            return "finished"
        return "trained, being validated" if _idle(folder) < JUST_NOW else "not validated (--val)"
    minutes = _idle(folder) / 60
    return f"unfinished, changed {minutes:.0f} min ago" if minutes < 600 else "unfinished (--c)"


def _store_state(folder: Path) -> StoreState:
    name = folder.name.split("_teacher_", 1)[1]
    try:
        store = Store(folder)
    except KDError:
        return StoreState(name, 0, 0, _size(folder), "another version of this package: store again")
    teachers = [f"{Path(teacher['folder']).name}, fold {teacher['fold']}" for teacher in store.header["teachers"]]
    return StoreState(name, len(store.cases), len(store.header["cases"]), _size(folder), "; ".join(teachers))


def _stores(data: Path | None) -> list[Path]:
    return [] if data is None else sorted(file.parent for file in data.glob(f"*_teacher_*/{HEADER}"))


def _useless_folds(folders: list[Path]) -> Iterator[Useless]:
    for folder in folders:
        if not any(folder.glob(CHECKPOINTS)) and _idle(folder) > MAY_RUN:
            yield Useless(folder, _size(folder), "a training that never saved anything")
        if (folder / REPLACED).is_dir():
            yield Useless(folder / REPLACED, _size(folder / REPLACED), "a training that another one replaced")
        for file in folder.glob(f"*{UNFINISHED}"):
            if _idle(folder) > MAY_RUN:
                yield Useless(file, _size(file), "a file that was never finished")


def _useless_stores(data: Path | None) -> Iterator[Useless]:
    """Stores whose teacher has been trained again. A deleted teacher is no reason: its store works without it."""
    for folder in _stores(data):
        try:
            teachers = Store(folder).header["teachers"]
        except KDError:
            yield Useless(folder, _size(folder), "a store of another version of this package")
            continue
        for teacher in teachers:
            file = Path(teacher["folder"]) / f"fold_{teacher['fold']}" / teacher["checkpoint"]
            if file.is_file() and file.stat().st_size != teacher["fingerprint"]["size"]:
                yield Useless(folder, _size(folder), "a store whose teacher was trained again since")
                break


def _useless_plans(data: Path | None) -> Iterator[Useless]:
    """Plans of students that nobody has trained."""
    for file in sorted(data.glob("*.json")) if data is not None else ():
        content = read_json(file)
        is_student = isinstance(content, dict) and RECORD in content
        if is_student and data is not None and not trained_with(data.name, file.stem):
            yield Useless(file, _size(file), "a student's plans that no model uses")


def _record(folder: Path) -> Record | None:
    try:
        return read_record(read_json(folder / RECORD_FILE), str(folder / RECORD_FILE))
    except KDError:
        return None


def _size(place: Path) -> int:
    files = [place] if place.is_file() else [file for file in place.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)


def _idle(folder: Path) -> float:
    """Seconds since anything in a folder changed."""
    return time.time() - max(file.stat().st_mtime for file in (folder, *folder.iterdir()))
