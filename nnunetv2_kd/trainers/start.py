"""The start of a training: what it must not replace, and how it is undone if it fails before its first iteration."""

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
from nnunetv2_kd.trainers.command_line import current_command
from nnunetv2_kd.trainers.options import NAME, SEED, VARIABLE
from nnunetv2_kd.trainers.same_method import method_differences, network_differences, teacher_differences

OVERWRITE = "nnUNet_kd_overwrite"
CHECKPOINTS = "checkpoint_*.pth"
REPLACED = "replaced"  # folder inside a fold's folder
# files that nnU-Net and we write at the start
OF_THE_MODEL = ("plans.json", "dataset.json", "dataset_fingerprint.json")
OF_THE_FOLD = ("debug.json", RECORD_FILE, OPTIONS_FILE)


def named_plans(plans: Plans, name: str | None) -> Plans:
    """Plans with ``_NAME`` added to their name, so that a variant of a student has its own folder."""
    if name is None or plans["plans_name"].endswith(f"_{name}"):
        return plans
    return plans | {"plans_name": f"{plans['plans_name']}_{name}"}


class Start:
    """A training, from its construction to its first iteration.

    Until then, everything that it writes to disk can be undone. Create this object before nnU-Net creates the folders.

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
        """Check that a training that resumes nothing replaces at most an earlier one by the same method.

        Args:
            plans: the student's.
            configuration: of these plans.
            now: its record, as far as it is known before the teacher is loaded.

        Returns:
            Lines for the log on a training that is going to be replaced.

        Raises:
            KDError: shows what differs, and what the user can do.
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
        """Like `check`, for the teachers' checkpoints, once they are known.

        Raises:
            KDError: if an earlier training with the same options had other teachers.
        """
        file = None if self.resumes else self._earlier()
        there = _read(file)[0] if file is not None else None
        if file is not None and there is not None:
            self._refuse_other(file, teacher_differences(there, now))

    def keep(self) -> None:
        """Keep everything from now on; called after the first iteration."""
        self._is_over = True

    def set_aside(self) -> None:
        """Move an earlier training's files out of the way, so that they are not mistaken for this one's."""
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
    def undo_on_failure(self) -> Iterator[None]:
        """If anything ends this context before the first iteration, undo the start."""
        try:
            yield
        except BaseException:
            self.undo()
            raise

    def undo(self) -> None:
        """Remove what this start has created and restore what it has overwritten, unless it is over or has
        saved a checkpoint."""
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
        """The checkpoint of an earlier training of this fold; None if there is none."""
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
            title = f"{model} holds fold {numbers} of another student, which cannot share a folder with this one:"
            raise KDError(
                listing(title, list(dict.fromkeys(differences)))
                + "\nAll folds of a model must have the same network and method. Give this one a name, which becomes "
                + f"part of its folder's name:\n  {_own_name(model)}"
            )

    def _refuse_other(self, file: Path, differences: list[str]) -> None:
        if differences and not _may_overwrite():
            state = "finished" if file.name == FINAL else "unfinished"
            title = f"{self.folder} holds the {state} training of another student:"
            raise KDError(
                listing(title, differences)
                + "\nTo keep it, give this one a name, which becomes part of its folder's name:"
                + f"\n  {_own_name(self.folder.parent)}"
                + f"\nTo put this one in its place:\n  {current_command(**{OVERWRITE: '1'})}"
                + ("" if file.name == FINAL else f"\nTo go on with the unfinished one:\n  {_go_on(self.folder)}")
            )

    def _will_replace(self, file: Path, how: str) -> str:
        if file.name == FINAL:
            first = f"NOTE: {self.folder} holds a finished training {how}, which this one replaces."
        else:
            first = (
                f"NOTE: {self.folder} holds an unfinished training {how}, which this one replaces. To go on with it "
                f"instead, stop this one before its first iteration and add --c."
            )
        return f"{first} The replaced training is kept in its folder {REPLACED}, until the next one is replaced."


def trained_folds(model: Path) -> list[Path]:
    """The folders of all folds that have a checkpoint. A folder without one is from a start that failed, or from a
    training that has not saved anything yet."""
    return [folder for folder in sorted(model.glob("fold_*")) if any(folder.glob(CHECKPOINTS))]


def check_named_plans(folder: Path, plans: Plans, configuration: str, name: str | None) -> None:
    """Check that a variant's name is not already used by plans of another network.

    Args:
        folder: of the preprocessed dataset.
        plans: of the variant.
        configuration: the configuration to train.
        name: of the variant; None if it has none.

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
            title = f"The name {name} is taken: {file} describes another network."
            raise KDError(listing(title, differences) + f"\nChoose another:\n  {current_command(**{NAME: f'{name}2'})}")


def write_named_plans(folder: Path, plans: Plans, configuration: str, name: str | None) -> None:
    """Write the plans of a named variant to where nnU-Net's own commands look for them.

    Args:
        folder, plans, configuration, name: as for `check_named_plans`.

    Raises:
        KDError: if they cannot be written.
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
    """The command that trains this student in its own folder."""
    parts = parse_model_name(model.name)
    number = 2
    while parts and any(model.parent.glob(f"{parts.trainer}__*_variant{number}__{parts.configuration}")):
        number += 1
    return current_command(**{NAME: f"variant{number}"})


def _go_on(fold: Path) -> str:
    return current_command("--c", **{VARIABLE: fold.absolute() / OPTIONS_FILE, NAME: None, SEED: None})


def _may_overwrite() -> bool:
    return os.environ.get(OVERWRITE, "").strip().lower() in ("1", "true", "t", "yes")


def _read(file: Path) -> tuple[Record | None, Plans | None]:
    """Record and plans of a checkpoint; if it cannot be read, the record file beside it."""
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
    """Remove an empty folder that did not exist before."""
    if folder in there or not folder.is_dir() or any(folder.iterdir()):
        return
    folder.rmdir()
