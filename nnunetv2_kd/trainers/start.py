"""The start of a training: what it may not replace, and what it leaves where it does not get to its first iteration."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

from nnunetv2_kd.errors import KDError, listing
from nnunetv2_kd.nnunet.checkpoint import read_checkpoint
from nnunetv2_kd.nnunet.files import read_json, write_text
from nnunetv2_kd.nnunet.model_folder import FINAL, OPTIONS_FILE, RECORD_FILE, fold_name, parse_model_name
from nnunetv2_kd.nnunet.plans import Plans, resolved_configuration
from nnunetv2_kd.record import Record, read_record
from nnunetv2_kd.students.shrink import RECORD
from nnunetv2_kd.trainers.command_line import this_line
from nnunetv2_kd.trainers.options import NAME, SEED, VARIABLE
from nnunetv2_kd.trainers.same_method import method_differences, network_differences, teacher_differences

OVERWRITE = "nnUNet_kd_overwrite"
CHECKPOINTS = "checkpoint_*.pth"
REPLACED = "replaced"  # folder in a fold's
# written at the start, by nnU-Net and by us
OF_THE_MODEL = ("plans.json", "dataset.json", "dataset_fingerprint.json")
OF_THE_FOLD = ("debug.json", RECORD_FILE, OPTIONS_FILE)


def named_plans(plans: Plans, name: str | None) -> Plans:
    """Plans under their name with ``_NAME`` behind it, so that a variant of a student has a folder of its own."""
    if name is None or plans["plans_name"].endswith(f"_{name}"):
        return plans
    return plans | {"plans_name": f"{plans['plans_name']}_{name}"}


class Start:
    """A training from its construction to its first iteration.

    Until then everything that it makes on the disk can be taken back. Make this before nnU-Net makes the folders.

    Args:
        folder: the fold's output folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.resumes = False  # or only validates
        self._there = {place for place in (folder, *folder.parents) if place.is_dir()}
        self._before = set(folder.iterdir()) if folder.is_dir() else set()
        files = [folder.parent / name for name in OF_THE_MODEL] + [folder / name for name in OF_THE_FOLD]
        self._contents = {file: file.read_bytes() for file in files if file.is_file()}
        self._is_over = False

    @property
    def is_over(self) -> bool:
        return self._is_over

    def check(self, plans: Plans, configuration: str, now: Record) -> list[str]:
        """A training that does not resume another replaces nothing but an earlier one by the same method.

        Args:
            plans: the student's.
            configuration: of them.
            now: its record, as far as it is known before the teacher is loaded.

        Returns:
            What the log must say of a training that is going to be replaced.

        Raises:
            KDError: shows what differs, and the ways out.
        """
        if self.resumes:
            return []
        self._check_siblings(plans, configuration, now)
        file = self._earlier()
        if file is None:
            return []
        there, its_plans = _read(file)
        if there is None:
            differences = ["it has no record of its method"]
        else:
            differences = network_differences(its_plans or plans, plans, configuration)
            differences += method_differences(there, now)
        self._refuse_other(file, differences)
        return [
            self._will_replace(file, f"by another method ({OVERWRITE} is set)" if differences else "by this method")
        ]

    def check_teacher(self, now: Record) -> None:
        """As `check`, of the checkpoints that teach, once they are known.

        Raises:
            KDError: where an earlier training by the same options had other ones.
        """
        file = None if self.resumes else self._earlier()
        there = _read(file)[0] if file is not None else None
        if file is not None and there is not None:
            self._refuse_other(file, teacher_differences(there, now))

    def keep(self) -> None:
        """The first iteration is done: from now on everything is kept."""
        self._is_over = True

    def set_aside(self) -> None:
        """Move what was trained before out of the way, so that nobody takes it for a part of this training."""
        if self.resumes:
            return
        before = [*sorted(self.folder.glob(CHECKPOINTS)), self.folder / "validation"]
        before = [entry for entry in before if entry in self._before and entry.exists()]
        if not before:
            return
        shutil.rmtree(self.folder / REPLACED, ignore_errors=True)
        (self.folder / REPLACED).mkdir()
        for entry in before:
            os.replace(entry, self.folder / REPLACED / entry.name)

    @contextmanager
    def taken_back_at_failure(self) -> Iterator[None]:
        """Whatever ends what is inside before the first iteration leaves nothing behind."""
        try:
            yield
        except BaseException:
            self.take_back()
            raise

    def take_back(self) -> None:
        """Remove what this start has made and put back what it has written over, unless it is over or has saved a
        checkpoint."""
        if self._is_over or self.resumes:
            return
        self._is_over = True
        new = set(self.folder.iterdir()) - self._before if self.folder.is_dir() else set()
        if any(entry.match(CHECKPOINTS) for entry in new):
            return
        for entry in new:
            if entry.is_dir():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                entry.unlink(missing_ok=True)
        for file, content in self._contents.items():
            if file.is_file() and file.read_bytes() != content:
                file.write_bytes(content)
        self._remove_empty()

    def _remove_empty(self) -> None:
        model = self.folder.parent
        _rmdir(self.folder, self._there)
        if model not in self._there and model.is_dir() and not any(model.glob("fold_*")):
            for name in OF_THE_MODEL:
                (model / name).unlink(missing_ok=True)
            _rmdir(model, self._there)
            _rmdir(model.parent, self._there)

    def _earlier(self) -> Path | None:
        """The checkpoint of an earlier training of this fold; None where there is none."""
        names = (FINAL, "checkpoint_latest.pth", "checkpoint_best.pth")
        return next((self.folder / name for name in names if (self.folder / name).is_file()), None)

    def _check_siblings(self, plans: Plans, configuration: str, now: Record) -> None:
        model = self.folder.parent
        siblings = [folder for folder in trained_folds(model) if folder != self.folder]
        if not siblings:
            return
        numbers = ", ".join(fold_name(folder) for folder in siblings)
        file = model / "plans.json"
        differences = network_differences(read_json(file), plans, configuration) if file.is_file() else []
        for sibling in siblings:
            record = _record_beside(sibling)
            differences += method_differences(record, now, across_folds=True) if record is not None else []
        if differences:
            title = f"{model} holds fold {numbers} of another student, with which this one cannot share a folder:"
            raise KDError(
                listing(title, list(dict.fromkeys(differences)))
                + "\nAll folds of a model are one network, trained by one method. Give this one a name, which becomes "
                + f"part of its folder's:\n  {_own_name(model)}"
            )

    def _refuse_other(self, file: Path, differences: list[str]) -> None:
        if differences and not _may_overwrite():
            state = "finished" if file.name == FINAL else "unfinished"
            title = f"{self.folder} holds the {state} training of another student:"
            raise KDError(
                listing(title, differences)
                + "\nTo keep it, give this one a name, which becomes part of its folder's:"
                + f"\n  {_own_name(self.folder.parent)}"
                + f"\nTo put this one in its place:\n  {this_line(**{OVERWRITE: '1'})}"
                + ("" if file.name == FINAL else f"\nTo go on with the unfinished one:\n  {_go_on(self.folder)}")
            )

    def _will_replace(self, file: Path, how: str) -> str:
        if file.name == FINAL:
            first = f"NOTE: {self.folder} holds a finished training {how}, whose place this one takes."
        else:
            first = (
                f"NOTE: {self.folder} holds an unfinished training {how}, whose place this one takes; to go on with "
                f"that one instead, end this one before its first iteration and add --c."
            )
        return f"{first} What was trained before is kept in its folder {REPLACED}, once."


def trained_folds(model: Path) -> list[Path]:
    """The folders of the folds of which there is any checkpoint. One without is of a start that failed, or of a
    training that has saved nothing yet."""
    return [folder for folder in sorted(model.glob("fold_*")) if any(folder.glob(CHECKPOINTS))]


def check_named_plans(folder: Path, plans: Plans, configuration: str, name: str | None) -> None:
    """The name of a variant is not that of plans of another network.

    Args:
        folder: of the preprocessed dataset.
        plans: of the variant.
        configuration: that is trained.
        name: of the variant; None: it has none.

    Raises:
        KDError: shows both networks.
    """
    file = folder / f"{plans['plans_name']}.json"
    if name is None or not file.is_file():
        return
    present = read_json(file)
    if configuration in present.get(RECORD, {}).get("width", {}):
        differences = network_differences(present, plans, configuration)
        if differences:
            title = f"The name {name} is taken: {file} is of another network."
            raise KDError(listing(title, differences) + f"\nChoose another:\n  {this_line(**{NAME: f'{name}2'})}")


def write_named_plans(folder: Path, plans: Plans, configuration: str, name: str | None) -> None:
    """The plans of a named variant, where nnU-Net's own commands look for those that ``-p`` names.

    Args:
        folder, plans, configuration, name: as of `check_named_plans`.

    Raises:
        KDError: where they cannot be written.
    """
    if name is None:
        return
    file = folder / f"{plans['plans_name']}.json"
    written = read_json(file) if file.is_file() else deepcopy(plans)
    if file.is_file() and configuration in written[RECORD]["width"]:
        return
    written["configurations"][configuration] = resolved_configuration(plans, configuration)
    written[RECORD]["width"] |= plans[RECORD]["width"]
    write_text(file, json.dumps(written, indent=4) + "\n")


def _own_name(model: Path) -> str:
    """The line that trains this student into a folder of its own."""
    parts = parse_model_name(model.name)
    number = 2
    while parts and any(model.parent.glob(f"{parts.trainer}__*_variant{number}__{parts.configuration}")):
        number += 1
    return this_line(**{NAME: f"variant{number}"})


def _go_on(fold: Path) -> str:
    return this_line("--c", **{VARIABLE: fold.absolute() / OPTIONS_FILE, NAME: None, SEED: None})


def _may_overwrite() -> bool:
    return os.environ.get(OVERWRITE, "").strip().lower() in ("1", "true", "t", "yes")


def _read(file: Path) -> tuple[Record | None, Plans | None]:
    """Record and plans of a checkpoint; of one that cannot be read, the record that is beside it."""
    try:
        checkpoint = read_checkpoint(file)
    except KDError:
        return _record_beside(file.parent), None
    record = read_record(checkpoint["kd"], str(file)) if checkpoint.get("kd") else None
    return record, checkpoint["init_args"].get("plans")


def _record_beside(fold: Path) -> Record | None:
    file = fold / RECORD_FILE
    content: Any = read_json(file) if file.is_file() else None
    return read_record(content, str(file)) if isinstance(content, dict) else None


def _rmdir(folder: Path, there: set[Path]) -> None:
    """Remove an empty folder that was not there."""
    if folder in there or not folder.is_dir() or any(folder.iterdir()):
        return
    folder.rmdir()
