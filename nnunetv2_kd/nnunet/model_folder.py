"""nnU-Net's model folders: ``<nnUNet_results>/<dataset>/<trainer>__<plans>__<configuration>/fold_<fold>``."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from nnunetv2.paths import nnUNet_results

FINAL = "checkpoint_final.pth"
OPTIONS_FILE = "kd_options.yaml"
RECORD_FILE = "kd_record.json"
ALL = "all"  # nnU-Net's fold of all cases

Fold = int | str


class ModelName(NamedTuple):
    """The parts of a model folder's name."""

    trainer: str
    plans: str
    configuration: str

    def __str__(self) -> str:
        return "__".join(self)

    def shortened(self) -> "ModelName":
        """For tables: the trainer without nnU-Net's prefix, ``RegionKD``."""
        return self._replace(trainer=self.trainer.removeprefix("nnUNetTrainer") or self.trainer)


def parse_model_name(name: str) -> ModelName | None:
    """Split a model folder's name; None if it does not have the form of nnU-Net's names.

    >>> parse_model_name("nnUNetTrainer__nnUNetPlans__3d_fullres")
    ModelName(trainer='nnUNetTrainer', plans='nnUNetPlans', configuration='3d_fullres')
    >>> parse_model_name("my_models") is None
    True
    """
    trainer, *plans, configuration = name.split("__") if name.count("__") >= 2 else ("", "")
    return ModelName(trainer, "__".join(plans), configuration) if plans else None


def fold_name(folder: Path) -> str:
    """The fold of a fold's folder: ``0`` for ``fold_0``."""
    return folder.name.removeprefix("fold_")


@dataclass(frozen=True)
class CheckpointPath:
    """One checkpoint of a trained model.

    Attributes:
        folder: the model's folder, with plans.json and dataset.json.
        fold: a number or `ALL`.
        checkpoint_name: the file's name.
        archive: the zip that `folder` was unpacked from; None if `folder` is the model's own.
        place_in_archive: the model's folder inside that zip.
    """

    folder: Path
    fold: Fold
    checkpoint_name: str
    archive: Path | None = None
    place_in_archive: str = ""

    @property
    def where(self) -> str:
        """The folder or zip with which options name the model."""
        return str(self.archive or self.folder)

    @property
    def checkpoint(self) -> Path:
        return self.folder / f"fold_{self.fold}" / self.checkpoint_name

    @property
    def missing_files(self) -> list[Path]:
        """Those of the three files a model needs that do not exist."""
        needed = (self.folder / "plans.json", self.folder / "dataset.json", self.checkpoint)
        return [file for file in needed if not file.is_file()]


def checkpoints_in(folder: Path) -> list[CheckpointPath]:
    """Every checkpoint of one model, sorted."""
    files = sorted(folder.glob("fold_*/checkpoint_*.pth"))
    return [CheckpointPath(folder, fold_name(file.parent), file.name) for file in files]


def checkpoints_of(dataset_name: str) -> list[CheckpointPath]:
    """Every checkpoint of a dataset's models under ``nnUNet_results``, sorted."""
    root = Path(nnUNet_results) / dataset_name
    return [
        CheckpointPath(file.parents[1], fold_name(file.parent), file.name)
        for file in sorted(root.glob("*__*__*/fold_*/checkpoint_*.pth"))
    ]


def trained_with(dataset_name: str, plans: str) -> list[str]:
    """Names of a dataset's models that use plans of this name and have a checkpoint; empty if
    ``nnUNet_results`` is not set."""
    if not nnUNet_results.is_set():
        return []
    names = {path.folder.name for path in checkpoints_of(dataset_name)}
    return sorted(name for name in names if (parts := parse_model_name(name)) is not None and parts.plans == plans)
