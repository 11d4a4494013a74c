"""Run teachers once over the preprocessed cases and store their predictions."""

import errno
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import torch
from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params, infer_dataset_class
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import Tensor
from tqdm import tqdm

from nnunetv2_kd.errors import KDError, listing
from nnunetv2_kd.nnunet.files import UNFINISHED, Fingerprint, fingerprint, write_atomically
from nnunetv2_kd.nnunet.fold_data import preprocess_line
from nnunetv2_kd.nnunet.locks import LOCK, hold_lock, lock_folder, readers_lock
from nnunetv2_kd.regions import Labels, known_heads
from nnunetv2_kd.teachers.combine import as_logits
from nnunetv2_kd.teachers.label_map import LabelMap
from nnunetv2_kd.teachers.stored import quantization
from nnunetv2_kd.teachers.stored.case_vectors import case_region_vectors, target_of
from nnunetv2_kd.teachers.stored.predictor import CasePredictor
from nnunetv2_kd.teachers.stored.store import HEADER, SCHEMA, Store, data_files, label_definition

SLAB = 32  # planes whose class probabilities are in memory in float32 at a time


@dataclass
class Task:
    """What to store, and where.

    Attributes:
        folder: of the store.
        data: of the preprocessed cases.
        manager: of the plans that the student is trained with.
        configuration: of those plans.
        command: the command that the user typed.
    """

    folder: Path
    data: Path
    manager: PlansManager
    configuration: str
    dataset_json: dict[str, Any]
    command: str

    @property
    def label_manager(self) -> LabelManager:
        return self.manager.get_label_manager(self.dataset_json)

    @property
    def labels(self) -> Labels:
        manager = self.label_manager
        return Labels(manager.num_segmentation_heads, manager.has_regions, manager.ignore_label)


def make(task: Task, models: Sequence[CasePredictor], overwrite: bool, say: Callable[[str], None]) -> Store:
    """Store every preprocessed case that is not in the store yet.

    Args:
        task: what to store, and where.
        models: the teachers; several are averaged, each structure over those that know it.
        overwrite: replace a store with other teachers or settings.
        say: called with messages for the user.

    Raises:
        KDError: if another process writes the store, the store has other teachers, or the disk is full.
    """
    dataset = infer_dataset_class(str(task.data))(str(task.data))
    _check_folder(task.folder)
    line = f"{task.command} --overwrite" if overwrite else task.command  # until the header is replaced
    try:
        task.folder.mkdir(parents=True, exist_ok=True)
        with lock_folder(task.folder) as news, hold_lock(readers_lock(task.folder)) as readers:
            if readers:
                raise KDError(_in_use_message(task, readers))
            if news:
                say(news)
            header = _header(task, models, sorted(dataset.identifiers))
            _prepare(task, header, overwrite)
            line = task.command
            store = Store(task.folder)
            todo = [case for case in header["cases"] if store.problem(case, task.data)]
            if len(todo) < len(header["cases"]):
                say(f"{len(header['cases']) - len(todo)} of {len(header['cases'])} cases are stored already.")
            failed = []
            for case in tqdm(todo, unit="case", disable=None):
                try:
                    _store_case(task, models, dataset, case)
                except KDError as error:
                    failed.append(f"{case}: {error}")
            if failed:
                title = f"{len(failed)} of {len(todo)} cases cannot be stored; the others are:"
                raise KDError(listing(title, failed) + f"\nOnce that is solved, continue with: {task.command}")
    except OSError as error:
        raise KDError(_cannot_write(task, error, line)) from error
    return Store(task.folder)


def _check_folder(folder: Path) -> None:
    """Check that the folder is new, empty or a store: nothing is written among other files.

    Raises:
        KDError: if it holds something else.
    """
    if not folder.is_dir() or (folder / HEADER).is_file():
        return
    own = (LOCK, readers_lock(folder).name)
    others = sorted(file.name for file in folder.iterdir() if file.name not in own and file.suffix != UNFINISHED)
    if others:
        raise KDError(
            f"{folder} is not a stored teacher: it has no {HEADER}, but holds {', '.join(others[:3])}"
            f"{' and more' if len(others) > 3 else ''}. Nothing was changed. Name another folder, or a new one, with "
            "-o."
        )


def known_structures(models: Sequence[CasePredictor]) -> list[int]:
    """Numbers of the student's structures that any of the teachers knows."""
    return sorted({structure for model in models for structure in model.map.known})


def shares(models: Sequence[CasePredictor], known: Sequence[int]) -> np.ndarray:
    """The weight of every teacher for every known structure ``(M, U)``: 0 if the teacher does not know it (ours)."""
    weights = np.array([[model.weight * (s in model.map.known) for s in known] for model in models])
    return np.asarray(weights / weights.sum(axis=0))


def _header(task: Task, models: Sequence[CasePredictor], cases: list[str]) -> dict[str, Any]:
    """Everything that is the same for all cases."""
    labels, known = task.labels, known_structures(models)
    is_partial = len(known) < labels.num_heads - (not labels.has_regions)
    return {
        **({"known": known} if is_partial else {}),
        "schema": SCHEMA,
        "dataset": task.data.parent.name,
        "data_identifier": task.data.name,
        "heads": [labels.num_heads, labels.has_regions],
        **label_definition(task.dataset_json),
        "teachers": [model.as_dict() for model in models],
        "probabilities": f"bytes, round(255 * 2/pi * asin(sqrt(p))), error at most {quantization.MAX_ERROR:.5f}",
        "cases": cases,
        "command": task.command,
    }


def _prepare(task: Task, header: dict[str, Any], overwrite: bool) -> None:
    """Write the header, unless the store already has the same one, apart from the list of cases.

    Raises:
        KDError: if the store has other teachers, data or settings.
    """
    if (task.folder / HEADER).is_file() and not overwrite:
        before = Store(task.folder).header
        fixed = header.keys() - {"cases", "command"}
        if any(_kept(before, key) != _kept(header, key) for key in fixed):
            raise KDError(
                f"The store {task.folder} was made with other teachers or settings, by: {before['command']}. It was "
                "kept as it is. Choose another name with -o, or add --overwrite to replace it."
            )
    new = task.folder / f"{HEADER}.new"  # written to disk before any case of the old store is discarded
    write_atomically(new, (json.dumps(header, indent=1) + "\n").encode())
    if overwrite:
        for case in header["cases"]:
            (task.folder / f"{case}.json").unlink(missing_ok=True)
    os.replace(new, task.folder / HEADER)


def _kept(header: dict[str, Any], key: str) -> Any:
    """The part of a header that must not change while a store grows; it does not include the places of the teachers."""
    value = json.loads(json.dumps(header.get(key)))
    if key == "teachers":
        left_out = (
            "folder",
            "fingerprint",
            "mirrored_axes",
            "training_cases",
        )  # the last two are known only for a checkpoint
        return [{k: v for k, v in teacher.items() if k not in left_out} for teacher in value]
    return value


def _store_case(task: Task, models: Sequence[CasePredictor], dataset: Any, case: str) -> None:
    _write_case(task, case, _answers(task, models, dataset, case))


@dataclass
class _Answers:
    """The teachers' output for a case, in the form in which it is written. ``before``: fingerprints of
    the preprocessed files."""

    before: dict[str, Fingerprint]
    stored: np.ndarray
    vectors: dict[str, np.ndarray]
    error: float
    dice: list[float | None]


def _load(task: Task, dataset: Any, case: str) -> tuple[Tensor, np.ndarray, dict[str, Any]]:
    """Image, segmentation and nnU-Net's properties of a preprocessed case.

    Raises:
        KDError: if its files are damaged, or their content cannot be used for training.
    """
    line = preprocess_line(task.manager.dataset_name, task.manager.plans_name, task.configuration)
    again = f"Preprocess it again: {line}"
    try:
        data, segmentation, _, properties = dataset.load_case(case)
        image, labels = np.array(data[:], dtype=np.float32), np.asarray(segmentation[:])
    except Exception as error:  # any error: pickle, blosc2 and numpy may meet any bytes
        problem = f"its preprocessed files in {task.data} cannot be read ({type(error).__name__})"
        raise KDError(f"{problem}. {again}") from error
    if image.shape[1:] != labels.shape[1:]:
        raise KDError(f"its preprocessed image and segmentation differ in size. {again}")
    if not np.isfinite(image).all():
        raise KDError(f"its preprocessed image contains values that are not finite. Correct the raw image. {again}")
    manager = task.label_manager
    strange = sorted({int(v) for v in np.unique(labels)} - {-1, 0, *manager.all_labels, manager.ignore_label})
    if strange:
        raise KDError(f"its preprocessed segmentation has labels that dataset.json does not have: {strange}. {again}")
    return torch.from_numpy(image), labels, properties


def _answers(task: Task, models: Sequence[CasePredictor], dataset: Any, case: str) -> _Answers:
    """Run the teachers over a case.

    Raises:
        KDError: if its files are damaged, or a teacher's output is not finite.
    """
    before = {file.name: fingerprint(file) for file in data_files(task.data, case)}
    image, segmentation, properties = _load(task, dataset, case)
    known = known_structures(models)
    target, labels = merge_unknown(task, known, target_of(segmentation, task.label_manager))
    probabilities = np.zeros((len(known), *image.shape[1:]), np.float32)
    vectors: dict[str, np.ndarray] = {}
    for number, (model, share) in enumerate(zip(models, shares(models, known), strict=True)):
        seen = model.see(case, image, properties)
        own = seen.to_student(_structures(model.logits(seen.image), model.map))
        for row, structure in enumerate(model.map.known):
            probabilities[known.index(structure)] += share[known.index(structure)] * own[row].numpy()
        if model.taps is not None:
            regions = seen.labels_from_student(target)
            found = case_region_vectors(model.predictor, model.taps, seen.image, regions, labels)
            vectors |= {f"{number}/{stage}": array for stage, array in found.items()}
    if not labels.has_regions:
        # teachers that know different structures may claim a voxel more than once
        probabilities /= np.maximum(probabilities.sum(axis=0), 1)
    stored, error = _as_bytes(probabilities)
    return _Answers(before, stored, vectors, error, _dice(stored, target, labels))


def _write_case(task: Task, case: str, answers: _Answers) -> None:
    """Write the files of a case. The record is written last, so that a case with a record is complete."""
    (task.folder / f"{case}.json").unlink(missing_ok=True)
    patch = task.manager.get_configuration(task.configuration).patch_size
    write_atomically(task.folder / f"{case}.b2nd", compress(answers.stored, patch))
    with BytesIO() as buffer:
        np.savez(buffer, **answers.vectors)  # type: ignore[arg-type]
        write_atomically(task.folder / f"{case}.npz", buffer.getvalue())
    record = {
        "data": answers.before,
        "files": {name: fingerprint(task.folder / name) for name in (f"{case}.b2nd", f"{case}.npz")},
        "error": answers.error,
        "dice": answers.dice,
    }
    write_atomically(task.folder / f"{case}.json", json.dumps(record).encode())


def _slabs(planes: int) -> Iterator[slice]:
    """Slices of a few planes each, because all classes of a case in float32 take much memory."""
    return (slice(start, start + SLAB) for start in range(0, planes, SLAB))


def merge_unknown(task: Task, known: Sequence[int], target: Tensor) -> tuple[Tensor, Labels]:
    """A target ``(R, *S)`` in which everything that no teacher knows is "anything else", and how to read it."""
    labels = task.labels
    partial = known_heads(labels, [structure + (not labels.has_regions) for structure in known])
    return (target, labels) if partial is None else (partial.target(target[None])[0], partial.merged_labels)


def _structures(logits: Tensor, label_map: LabelMap) -> Tensor:
    """Probabilities ``(U, *S)`` of the structures that a teacher knows."""
    found = torch.empty(len(label_map.known), *logits.shape[1:])
    for slab in _slabs(logits.shape[1]):
        found[:, slab] = label_map.probabilities(logits[:, slab], dim=0)
    return found


def _as_bytes(probabilities: np.ndarray) -> tuple[np.ndarray, float]:
    """The bytes, and the largest quantization error."""
    stored = np.empty(probabilities.shape, np.uint8)
    error = 0.0
    for slab in _slabs(probabilities.shape[1]):
        stored[:, slab] = quantization.encode(probabilities[:, slab])
        error = max(error, float(np.abs(quantization.decode(stored[:, slab]) - probabilities[:, slab]).max()))
    return stored, error


def compress(stored: np.ndarray, patch_size: Sequence[int]) -> bytes:
    """The content of a blosc2 file, in chunks that suit this patch size, chosen as nnU-Net does for its own data."""
    blocks, chunks = comp_blosc2_params(stored.shape, patch_size, bytes_per_pixel=1)
    parameters = {"codec": blosc2.Codec.ZSTD, "clevel": 5, "filters": [blosc2.Filter.NOFILTER], "nthreads": 1}
    array = blosc2.asarray(np.ascontiguousarray(stored), chunks=chunks, blocks=blocks, cparams=parameters)
    return bytes(array.to_cframe())


def _dice(stored: np.ndarray, target: Tensor, labels: Labels) -> list[float | None]:
    """Dice of the stored predictions against the labels, per foreground class or region; None if
    neither contains it."""
    from nnunetv2_kd.teachers.pseudo_dice import pseudo_dice  # trainers read stores

    def slabs() -> Iterator[tuple[Tensor, Tensor]]:
        for slab in _slabs(stored.shape[1]):
            decoded = torch.from_numpy(quantization.decode(stored[:, slab]))[None]
            probabilities = quantization.all_probabilities(decoded, labels.has_regions)
            yield as_logits(probabilities, labels.has_regions), target[None, :, slab]

    return [None if np.isnan(dice) else dice for dice in pseudo_dice(slabs(), labels)]


def _in_use_message(task: Task, readers: str) -> str:
    return (
        f"Trainings are reading {task.folder}: {readers} (process id on host). It was not changed, because from the "
        "next batch on another teacher would teach them. Wait until they have ended, or store under another name "
        "with -o."
    )


def _cannot_write(task: Task, error: OSError, line: str) -> str:
    kept = sum(file.name != HEADER for file in task.folder.glob("*.json"))
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"The disk is full: {task.folder} holds {kept} finished cases, which are kept. Free some space and "
            f"continue with: {line}"
        )
    return f"The store {task.folder} cannot be completed: {error}. Once that is solved, continue with: {line}"
