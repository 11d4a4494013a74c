"""The trained models of a dataset, fold by fold, and why some cannot be compared."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunetv2.paths import nnUNet_results

from nnunetv2_kd.errors import KDError, listing
from nnunetv2_kd.nnunet.checkpoint import CarriesObjectsError, read_checkpoint
from nnunetv2_kd.nnunet.datasets import how_to_train
from nnunetv2_kd.nnunet.locks import LOCK_OF_TRAINING, holders
from nnunetv2_kd.nnunet.model_files import read_model_files
from nnunetv2_kd.nnunet.model_folder import ALL, FINAL, RECORD_FILE, ModelName, fold_name, parse_model_name
from nnunetv2_kd.record import Record, TeacherRecord, read_record


@dataclass(frozen=True)
class TrainedFold:
    """One fold of a model.

    Attributes:
        name: ``0`` or ``all``, as in the folder's name.
        folder: with checkpoints and ``validation``.
        is_trained: whether its training is finished.
        record: the checkpoint's record of where it comes from (key ``kd``); None for stock nnU-Net.
        epoch: epochs trained; None if not known.
        problem: why it cannot be compared on its validation cases; empty if it can.
        plans: the plans that the checkpoint was trained with; None if not known.
    """

    name: str
    folder: Path
    is_trained: bool
    record: Record | None
    epoch: int | None
    problem: str
    plans: dict[str, Any] | None = None

    @property
    def checkpoint(self) -> Path:
        return self.folder / FINAL

    @property
    def summary(self) -> Path:
        return self.folder / "validation" / "summary.json"

    @property
    def debug_information(self) -> dict[str, Any]:
        """What nnU-Net recorded about the trainer at the start of the training, every value as text;
        empty if missing."""
        return _json_or_nothing(self.folder / "debug.json")


@dataclass(frozen=True)
class TrainedModel:
    """One trained model: ``trainer__plans__configuration`` of a dataset, with the folds that exist.

    Attributes:
        runs_in: the runtime, such as ``openvino bf16``, if one model is compared in several; then part of its name.
        part: suffix of its name, such as ``__fold_5``, if the folder's folds do not all belong together.
        apart: why the other folds do not belong to it, in words.
        unpredictable: why nnU-Net cannot predict with it, in words; empty if it can.
    """

    dataset: str
    folder: Path
    plans: dict[str, Any]
    dataset_json: dict[str, Any]
    folds: tuple[TrainedFold, ...]
    runs_in: str = ""
    part: str = ""
    apart: str = ""
    unpredictable: str = ""

    @property
    def name(self) -> str:
        return f"{self.folder.name}{self.part}" + (f" in {self.runs_in}" if self.runs_in else "")

    @property
    def trainer(self) -> str:
        return self._parts.trainer

    @property
    def plans_name(self) -> str:
        return self._parts.plans

    @property
    def configuration(self) -> str:
        return self._parts.configuration

    @property
    def _parts(self) -> ModelName:
        parts = parse_model_name(self.folder.name)
        if parts is None:
            raise KDError(f"{self.folder} is not a model folder: expected TRAINER__PLANS__CONFIGURATION.")
        return parts

    @property
    def record(self) -> Record | None:
        """The record of the first fold that has one; all folds of a model have the same trainer and plans."""
        return next((fold.record for fold in self.folds if fold.record is not None), None)

    @property
    def teachers(self) -> tuple[TeacherRecord, ...]:
        """The teachers of its folds, in order; empty for stock nnU-Net and for a student that was trained alone."""
        return tuple(teacher for fold in self.folds if fold.record is not None for teacher in fold.record.teachers)

    @property
    def trained_folds(self) -> tuple[TrainedFold, ...]:
        return tuple(fold for fold in self.folds if fold.is_trained)

    @property
    def validated_folds(self) -> tuple[TrainedFold, ...]:
        return tuple(fold for fold in self.folds if not fold.problem)

    @property
    def predicting_folds(self) -> tuple[TrainedFold, ...]:
        """The folds that predict new images as an ensemble: the trained ones of the cross-validation,
        or else ``all``."""
        return tuple(fold for fold in self.trained_folds if fold.name != ALL) or self.trained_folds


def find_models(
    dataset: str, configurations: list[str] | None = None, folds: list[str] | None = None
) -> tuple[list[TrainedModel], list[str]]:
    """Every model of a dataset under ``nnUNet_results``, sorted by name. Fold folders without a checkpoint are ignored:
    they are from trainings that failed at the start or have not saved anything yet.

    Args:
        dataset: as in a folder's name, ``Dataset004_Hippocampus``.
        configurations: only these; None: all.
        folds: only these; None: all.

    Returns:
        The models with at least one of the wanted folds, and one line per folder that could not be read.

    Raises:
        KDError: if there is none, or none is finished; lists what exists.
    """
    models, problems = [], []
    for folder in sorted((Path(nnUNet_results) / dataset).glob("*__*__*")):
        name = parse_model_name(folder.name)
        if name is None or not folder.is_dir() or (configurations and name.configuration not in configurations):
            continue
        if not _fold_folders(folder, folds):
            continue
        try:
            models.append(read_model(folder, folds))
        except KDError as error:
            problems.append(f"{folder.name}: {error}")
    if not any(model.trained_folds for model in models):
        raise KDError(_nothing(dataset, models, problems, configurations, folds))
    return models, problems


def read_model(folder: Path, folds: list[str] | None = None) -> TrainedModel:
    """The model of one folder, ``DATASET/TRAINER__PLANS__CONFIGURATION``, with the wanted folds.

    Raises:
        KDError: if plans.json or dataset.json cannot be read, or is not as nnU-Net writes it.
    """
    plans, dataset_json = read_model_files(folder, whole_path=False)
    found = tuple(_read_fold(fold_folder) for fold_folder in _fold_folders(folder, folds))
    return TrainedModel(folder.parent.name, folder, plans, dataset_json, found)


def pick(models: list[TrainedModel], name: str, flag: str) -> TrainedModel:
    """The model that a user names, either in full or with a part that only one name contains.

    Raises:
        KDError: if none or several fit; lists the names.
    """
    exact = [model for model in models if name in (model.name, model.folder.name)]
    fitting = exact or [model for model in models if name in model.name]
    if len(fitting) == 1:
        return fitting[0]
    found = "fits none" if not fitting else f"fits {len(fitting)}"
    title = f"{flag} {name} {found} of the models of {models[0].dataset}; name one of:"
    raise KDError(listing(title, [model.name for model in fitting or models]))


def _fold_folders(folder: Path, folds: list[str] | None) -> list[Path]:
    begun = [f for f in sorted(folder.glob("fold_*")) if any(f.glob("checkpoint_*.pth"))]
    return [f for f in begun if folds is None or fold_name(f) in folds]


def _not_finished(folder: Path) -> str:
    if who := holders(folder / LOCK_OF_TRAINING):
        return f"is being trained by {who} (process id on host); wait until it has ended"
    begun = sorted(file.name for file in folder.glob("checkpoint_*.pth"))
    return f"training not finished: there is {', '.join(begun)}, and no {FINAL} (repeat its command with --c)"


def _read_fold(folder: Path) -> TrainedFold:
    name = fold_name(folder)
    if not (folder / FINAL).is_file():
        return TrainedFold(name, folder, False, _record_beside(folder), None, _not_finished(folder))
    try:
        checkpoint = read_checkpoint(folder / FINAL)
    except CarriesObjectsError:  # from another kind of trainer, and not loaded here; its validation is still valid
        checkpoint = {"kd": _json_or_nothing(folder / RECORD_FILE)}
    except KDError as error:
        return TrainedFold(name, folder, False, None, None, str(error))
    epoch = checkpoint.get("current_epoch")
    try:
        record = read_record(checkpoint["kd"], str(folder / FINAL)) if checkpoint.get("kd") else None
    except KDError as error:
        return TrainedFold(name, folder, True, None, epoch, str(error))
    problem = ""
    if name == ALL:
        problem = "fold 'all' is trained on its validation cases: left out; compare on other images with -i -gt"
    elif not (folder / "validation" / "summary.json").is_file():
        problem = "trained, but not validated: no validation/summary.json (repeat the training command with --val)"
    plans = (checkpoint.get("init_args") or {}).get("plans") or None
    return TrainedFold(name, folder, True, record, epoch, problem, plans)


def _record_beside(folder: Path) -> Record | None:
    """The record of a training that has not ended."""
    found = _json_or_nothing(folder / RECORD_FILE)
    try:
        return read_record(found, str(folder / RECORD_FILE)) if found else None
    except KDError:  # reported where it is needed
        return None


def _json_or_nothing(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _nothing(
    dataset: str,
    models: list[TrainedModel],
    problems: list[str],
    configurations: list[str] | None,
    folds: list[str] | None,
) -> str:
    asked = f" with configuration {' or '.join(configurations)}" if configurations else ""
    asked += f" with fold {' or '.join(folds)}" if folds else ""
    found = problems + [f"{m.name}, fold {fold.name}: {fold.problem}" for m in models for fold in m.folds]
    root = Path(nnUNet_results) / dataset
    folders = sorted({file.parent for file in root.glob("*__*__*/fold_*/checkpoint_*.pth")})
    others = [f"{folder.parent.name}, fold {fold_name(folder)}" for folder in folders]
    lines = [f"No trained model of {dataset}{asked} under {nnUNet_results}."]
    if found or others:
        lines.append(listing("Found:", found or others))
    if not problems:  # there are models, which only need to be repaired
        lines.append(how_to_train(dataset))
    return "\n".join(lines)
