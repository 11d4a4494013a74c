"""The files of a store, and whether a training can use it.

``<nnUNet_preprocessed>/<dataset>/<data_identifier>_teacher_<name>/`` holds

* ``store.json``: the teachers, the data, the settings (`Store.header`);
* ``<case>.b2nd``: class probabilities as bytes, see `quantization`;
* ``<case>.npz``: every teacher's region vectors, see `case_vectors`;
* ``<case>.json``: written last, so that a case that has one is complete: fingerprints of its two files and of the
  preprocessed ones, the largest quantization error, and the Dice against the labels.
"""

import json
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from nnunetv2_kd.errors import KDError, listing
from nnunetv2_kd.nnunet.files import is_same, read_json
from nnunetv2_kd.nnunet.model_files import printable
from nnunetv2_kd.teachers.stored.header import header_problems, is_case_record

SCHEMA = 1
HEADER = "store.json"
SHOWN = 5
AGAIN = "Delete the folder and store again: nnUNetv2_kd store"


def store_folder(dataset: Path, data_identifier: str, name: str) -> Path:
    """The folder of the store of that name.

    Args:
        dataset: the dataset's folder under nnUNet_preprocessed.
        data_identifier: of the preprocessed data, see nnU-Net's plans.
        name: as given to ``nnUNetv2_kd store -o``, or a folder's path.
    """
    return Path(name) if len(Path(name).parts) > 1 else dataset / f"{data_identifier}_teacher_{name}"


def data_files(folder: Path, case: str) -> list[Path]:
    """The preprocessed image and segmentation of a case."""
    return [file for end in (".b2nd", "_seg.b2nd", ".npz") if (file := folder / f"{case}{end}").is_file()]


class Store:
    """An existing store, for reading.

    Args:
        folder: with a ``store.json``.

    Raises:
        KDError: if there is none, or another version wrote it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not (folder / HEADER).is_file():
            raise KDError(_no_store(folder))
        header = read_json(folder / HEADER, mend=AGAIN)
        if isinstance(header, dict) and "schema" in header and header["schema"] != SCHEMA:
            raise KDError(
                f"{folder} was written by another version of nnunetv2_kd (schema {printable(header['schema'])}, "
                f"expected {SCHEMA}). Delete the folder and store again: "
                f"{printable(header.get('command', 'nnUNetv2_kd store'))}"
            )
        problems = list(header_problems(header))
        if problems:
            raise KDError(f"{listing(f'{folder / HEADER} is not as nnUNetv2_kd store writes it:', problems)}\n{AGAIN}")
        self.header: dict[str, Any] = header

    @property
    def label_definition(self) -> dict[str, Any]:
        """Labels and regions as in the dataset.json of the store's data."""
        return {"labels": dict(self.header["labels"]), "regions_class_order": self.header["regions_class_order"]}

    @property
    def command(self) -> str:
        """The command that made the store, which also continues it."""
        return str(self.header["command"])

    @cached_property
    def cases(self) -> dict[str, dict[str, Any]]:
        """The finished cases, with the contents of their ``<case>.json``."""
        return {case: record for case in self.header["cases"] if (record := self.record(case)) is not None}

    def record(self, case: str) -> dict[str, Any] | None:
        """The contents of a case's ``<case>.json``; None if the case is not finished."""
        try:
            record: dict[str, Any] = json.loads((self.folder / f"{case}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return None
        return record if is_case_record(record, case) else None

    def mean_dice(self, cases: Sequence[str]) -> float | None:
        """Dice of the stored predictions of these cases against their labels, mean over classes and cases; None if it
        is not known for all classes, as for teachers that do not know all of them."""
        found = [
            value for case in cases for value in (self.cases.get(case) or {"dice": []})["dice"] if value is not None
        ]
        return sum(found) / len(found) if found and "known" not in self.header else None

    def vectors(self, case: str) -> dict[str, np.ndarray]:
        """Region vectors ``(K, C)`` by ``<number of the teacher>/<its stage>``."""
        file = self.folder / f"{case}.npz"
        try:
            with np.load(file) as arrays:  # never load objects, which could run code
                return dict(arrays)
        except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
            problem = f"{file} cannot be read ({type(error).__name__}). Delete it, and store again"
            raise KDError(f"{problem}: {self.command}") from error

    def problem(self, case: str, data: Path) -> str:
        """Why a case cannot be used; "" if it can.

        Args:
            case: its identifier.
            data: folder of the preprocessed data.
        """
        record = self.cases.get(case)
        if record is None:
            return f"{case}: not stored" if case in self.header["cases"] else f"{case}: not in the store"
        for name, known in record["files"].items():
            file = self.folder / name
            if not is_same(file, known):
                return f"{file}: {_found(file)}, expected {known['size']} bytes with SHA-256 {known['sha256'][:12]}"
        found = {file.name for file in data_files(data, case)}
        for name in sorted(found | set(record["data"])):
            if name not in record["data"] or not is_same(data / name, record["data"][name]):
                return f"{data / name}: changed since the teacher saw it ({_found(data / name)})"
        return ""

    def check(self, data: Path, heads: tuple[int, bool], dataset_json: Mapping[str, Any], cases: Sequence[str]) -> None:
        """Check that a training can use the store.

        Args:
            data: folder of the training's preprocessed data.
            heads: number of segmentation heads, and whether they are overlapping regions.
            dataset_json: the training's, for its labels and regions.
            cases: the training's.

        Raises:
            KDError: says what was expected, what was found, and which command solves it.
        """
        expected = {"dataset": data.parent.name, "data_identifier": data.name, "heads": list(heads)}
        expected |= label_definition(dataset_json)
        differing = [
            f"{key}: {self.header.get(key)} in the store, {value} in this training"
            for key, value in expected.items()
            if self.header.get(key) != value
        ]
        if differing:
            raise KDError(listing(f"The store {self.folder} was not made from this training's data:", differing))
        for teacher in self.header["teachers"]:
            checkpoint = Path(teacher["folder"]) / f"fold_{teacher['fold']}" / teacher["checkpoint"]
            if checkpoint.is_file() and not is_same(checkpoint, teacher["fingerprint"]):
                raise KDError(
                    f"The teacher {checkpoint} has changed since {self.folder} was made from it (SHA-256 then "
                    f"{teacher['sha256']}). Store it again: {self.command} --overwrite"
                )
        problems = [problem for case in cases if (problem := self.problem(case, data))]
        if problems:
            more = [f"and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
            title = f"{len(problems)} of {len(cases)} training cases cannot be used from the store {self.folder}:"
            raise KDError(
                listing(title, problems[:SHOWN] + more) + f"\nThis command stores only these cases: {self.command}"
            )


def label_definition(dataset_json: Mapping[str, Any]) -> dict[str, Any]:
    """Labels and regions as pairs, because their order is the heads' order; and nnU-Net's ``regions_class_order``."""
    pairs = [
        [name, list(value) if isinstance(value, (list, tuple)) else value]
        for name, value in dataset_json["labels"].items()
    ]
    return {"labels": pairs, "regions_class_order": dataset_json.get("regions_class_order")}


def _found(file: Path) -> str:
    return f"found {file.stat().st_size} bytes" if file.is_file() else "missing"


def _no_store(folder: Path) -> str:
    identifier = folder.name.split("_teacher_")[0]
    there = sorted(f.parent.name for f in folder.parent.glob(f"*_teacher_*/{HEADER}"))
    names = [name.removeprefix(f"{identifier}_teacher_") if name.startswith(identifier) else name for name in there]
    return (
        f"There is no stored teacher in {folder}. Other stores there: {', '.join(names) or 'none'}. Make one: "
        "nnUNetv2_kd store -d DATASET -c CONFIGURATION -f FOLD -o NAME"
    )
