"""Write the new dataset in nnU-Net's raw format, case by case, so that finished cases are kept."""

import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw, nnUNet_results
from nnunetv2.utilities.dataset_name_id_conversion import find_candidate_datasets

from nnunetv2_kd.errors import KDError
from nnunetv2_kd.nnunet.files import read_json, write_atomically

PROGRESS = "teacher_labels.json"
OPTIONS = "student.yaml"


def output_name(wanted: str, like: str) -> str:
    """The full name of the new dataset.

    Args:
        wanted: ``104``, or a full name.
        like: the name of the labelled dataset, or of the teacher's.

    Raises:
        KDError: if it is neither a number nor a name in nnU-Net's form.
    """
    if re.fullmatch(r"Dataset\d{3}_\w+", wanted):
        return wanted
    if not re.fullmatch(r"\d{1,3}", wanted):
        raise KDError(f"-o must be a dataset's number, such as 104, or name, such as Dataset104_Mine; found {wanted}")
    return f"Dataset{int(wanted):03d}_{like.partition('_')[2] or 'Scans'}TeacherLabels"


class Output:
    """The folder of the dataset under ``nnUNet_raw``.

    Attributes:
        folder: the folder.
        scans: the facts of every finished scan, from this and earlier runs.

    Args:
        name: of the dataset.
        settings: everything that the labels depend on, as plain values.
        command: the command that goes on after an interruption.
    """

    def __init__(self, name: str, settings: dict[str, Any], command: str) -> None:
        self.folder = Path(nnUNet_raw) / name
        self.settings: dict[str, Any] = json.loads(json.dumps(settings))
        self.command = command
        self.scans: dict[str, dict[str, Any]] = {}

    def problem(self) -> str:
        """Why the dataset cannot be written; empty if it can. Also reads what an earlier run has finished."""
        name = self.folder.name
        others = sorted({str(found) for found in find_candidate_datasets(int(name[7:10]))} - {name})
        if others:
            return f"-o: the number {int(name[7:10])} is that of {', '.join(others)} already; take another"
        if not self.folder.is_dir():
            places = [Path(root) / name for root in (nnUNet_preprocessed, nnUNet_results) if root.is_set()]
            there = [str(place) for place in places if place.is_dir()]
            return f"-o: {', '.join(there)} exists already; take another number" if there else ""
        if (self.folder / "dataset.json").is_file() or not (self.folder / PROGRESS).is_file():
            return f"-o: the dataset {self.folder} exists already and was kept as it is; take another number"
        before = read_json(self.folder / PROGRESS)
        if not isinstance(before, dict) or not all(isinstance(before.get(key), dict) for key in ("settings", "scans")):
            return f"-o: {self.folder / PROGRESS} is damaged: remove {self.folder}, or take another number"
        if before["settings"] != self.settings:
            return (
                f"-o: {self.folder} was started with other scans, teachers or settings, by: {before.get('command')}. "
                "Continue with that command, or take another number"
            )
        self.scans = before["scans"]
        return ""

    def begin(self) -> None:
        for part in ("imagesTr", "labelsTr"):
            (self.folder / part).mkdir(parents=True, exist_ok=True)
        self._write_progress()

    def done(self, case: str, facts: Mapping[str, Any]) -> None:
        """Record that all files of a scan are written."""
        self.scans[case] = dict(facts)
        self._write_progress()

    def add(self, part: str, name: str, file: Path, copy: bool) -> None:
        """Link a file into ``imagesTr`` or ``labelsTr``; copy it if asked to, or if links are not possible."""
        place = self.folder / part / name
        place.unlink(missing_ok=True)
        if not copy:
            try:
                place.symlink_to(file.resolve())
                return
            except (OSError, NotImplementedError):  # a file system without links
                place.unlink(missing_ok=True)
        unfinished = place.with_name(f".{name}.unfinished")
        try:
            shutil.copyfile(file, unfinished)
            os.replace(unfinished, place)
        finally:
            unfinished.unlink(missing_ok=True)

    def finish(self, dataset_json: Mapping[str, Any]) -> None:
        """Write dataset.json, which completes the dataset."""
        write_atomically(self.folder / "dataset.json", (json.dumps(dataset_json, indent=1) + "\n").encode())

    def kept(self) -> list[str]:
        """Scans with labels, sorted."""
        return sorted(case for case, facts in self.scans.items() if not facts["left_out"])

    def left_out(self) -> list[str]:
        return sorted(case for case, facts in self.scans.items() if facts["left_out"])

    def _write_progress(self) -> None:
        content = {"command": self.command, "settings": self.settings, "scans": self.scans}
        write_atomically(self.folder / PROGRESS, (json.dumps(content, indent=1) + "\n").encode())


def write_preprocessed(name: str, files: Mapping[str, Any]) -> Path:
    """Write files to where nnU-Net is going to preprocess the dataset.

    Args:
        files: the content of each file by name, to write as JSON.

    Returns:
        The dataset's folder under ``nnUNet_preprocessed``.
    """
    folder = Path(nnUNet_preprocessed) / name
    folder.mkdir(parents=True, exist_ok=True)
    for file, content in files.items():
        write_atomically(folder / file, (json.dumps(content, indent=1) + "\n").encode())
    return folder


def unset_variables() -> Iterable[str]:
    """nnU-Net's paths that are needed but not set."""
    return [f"{v.env_var_name} is not set" for v in (nnUNet_raw, nnUNet_preprocessed) if not v.is_set()]
