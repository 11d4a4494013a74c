"""The teachers that label scans: any trained nnU-Net models, each with its own plans on the original scans."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nnunetv2_kd.errors import KDError
from nnunetv2_kd.inference.predictor import FastPredictor
from nnunetv2_kd.inference.preprocess import preprocess
from nnunetv2_kd.networks.build import build_network, configuration_of
from nnunetv2_kd.networks.cost import count_params
from nnunetv2_kd.nnunet.checkpoint import read_checkpoint
from nnunetv2_kd.nnunet.model_files import read_model_files
from nnunetv2_kd.nnunet.model_folder import ALL, CheckpointPath, fold_name
from nnunetv2_kd.teachers.check import channels
from nnunetv2_kd.teachers.label_map import LabelMap, Named, Structures, map_labels, map_problems, structures_of
from nnunetv2_kd.teachers.load import cases_of, load_strictly, plain_weights, teacher_record

MEND = (
    "Say what it is called there, --labels {name}=THEIR_LABEL; a structure that no teacher knows would be background "
    "in every scan"
)


class Labeller:
    """A teacher: the folds of one model folder.

    Attributes:
        folder: the model's folder.
        plans, dataset_json, configuration: of the model.
        named: for each label of the dataset, the model's labels that make it up, if the names differ.
        records, training_cases: one per fold, as in a checkpoint's record.

    Args:
        paths: the folds' checkpoints, all of one model folder.
        named: as above.
        device: to predict on.
        mirroring: whether to average over mirrored images, along the axes that the model was trained with.
        trust: load checkpoints with more than plain data, and networks of any package.

    Raises:
        KDError: if the model cannot be read or built, or needs another model's predictions.
    """

    def __init__(
        self, paths: Sequence[CheckpointPath], named: Named, device: torch.device, mirroring: bool, trust: bool
    ) -> None:
        self.folder, self.named = paths[0].folder, named
        self.plans, self.dataset_json = read_model_files(self.folder)
        checkpoints = [read_checkpoint(path.checkpoint, trust) for path in paths]
        self.configuration: str = checkpoints[0]["init_args"]["configuration"]
        manager, configuration = configuration_of(self.plans, self.configuration, trust)
        if configuration.previous_stage_name is not None:
            raise KDError(
                f"{self.folder} is a cascade: it needs the predictions of {configuration.previous_stage_name} for "
                "every scan. Take a model of one stage, such as 3d_fullres or 3d_lowres."
            )
        name = str(checkpoints[0]["trainer_name"])
        network = build_network(
            self.plans, self.configuration, self.dataset_json, name, deep_supervision=False, trust=trust
        )
        for path, checkpoint in zip(paths, checkpoints, strict=True):
            load_strictly(network, checkpoint["network_weights"], path)
        params = count_params(network)
        self.records = [
            teacher_record(path, checkpoint, params, None)  # for a student's fold, this is found out when it is trained
            for path, checkpoint in zip(paths, checkpoints, strict=True)
        ]
        self.training_cases = [
            cases_of(path, self.plans, self.dataset_json, checkpoint)
            for path, checkpoint in zip(paths, checkpoints, strict=True)
        ]
        self._weights = [plain_weights(checkpoint["network_weights"]) for checkpoint in checkpoints]
        axes = checkpoints[0].get("inference_allowed_mirroring_axes") if mirroring else None
        self.mirroring: tuple[int, ...] = tuple(axes or ())
        on_gpu = device.type == "cuda"
        self._predictor = FastPredictor(
            use_mirroring=bool(self.mirroring), device=device, perform_everything_on_device=on_gpu, allow_tqdm=False
        )
        self._predictor.manual_initialization(
            network.to(device), manager, configuration, None, self.dataset_json, name, self.mirroring or None
        )

    @property
    def reader(self) -> type:
        """nnU-Net's reader class for the model's images."""
        return self._predictor.plans_manager.image_reader_writer_class

    def map_to(self, structures: Structures) -> LabelMap:
        """The map from the model's heads to a dataset's structures."""
        return map_labels(structures, structures_of(self.dataset_json), self.named)

    def all_named(self, structures: Structures) -> dict[str, list[str] | None]:
        """For each of a dataset's labels, the model's labels, or None if it has none; empty if the labels
        are the same."""
        label_map = self.map_to(structures)
        if label_map.is_one_to_one and not self.named:
            return {}
        known = {structures.names[number] for number in label_map.known}
        return {name: list(self.named.get(name, [name])) if name in known else None for name in structures.names}

    @property
    def channels(self) -> list[str]:
        return [str(name) for name in channels(self.dataset_json).values()]

    def probabilities(self, files: Sequence[Path], label_map: LabelMap) -> Iterator[tuple[np.ndarray, dict[str, Any]]]:
        """Predict a scan with each fold.

        Yields:
            Probabilities ``(U, *S)``, float32, of the structures that the map knows, in the scan's own space; and
            nnU-Net's properties of the scan, for writing.
        """
        predictor = self._predictor
        image, properties = preprocess(
            [str(file) for file in files],
            None,
            predictor.plans_manager,
            predictor.configuration_manager,
            self.dataset_json,
        )
        for weights in self._weights:
            predictor.list_of_parameters = [weights]
            logits: Tensor = predictor.predict_logits_from_preprocessed_data(torch.from_numpy(image)).cpu()
            _, probabilities = predictor.segmentation_of(logits, properties, probabilities=True)
            probabilities = np.asarray(probabilities, dtype=np.float32)
            if not np.isfinite(probabilities).all():
                raise KDError(
                    f"the output of {self.folder.name} for it is not finite: the weights or the image are damaged"
                )
            yield label_map.sums(torch.from_numpy(probabilities), 0).numpy(), properties


@dataclass(frozen=True)
class Models:
    """Which models to label with.

    Attributes:
        folders: of the models.
        named: per model, the model's labels that make up each of the dataset's, if the names differ.
        folds: of each model; None: all trained ones, but ``all`` only if there is no other.
        checkpoint: file name inside a fold's folder.
        trust: load checkpoints with more than plain data, and networks of any package.
        mirroring: average over mirrored images.
        device: to predict on.
    """

    folders: tuple[Path, ...]
    named: tuple[Mapping[str, tuple[str, ...]], ...]
    folds: tuple[str, ...] | None
    checkpoint: str
    trust: bool
    mirroring: bool
    device: torch.device


def find_labellers(models: Models) -> tuple[list[Labeller], list[str]]:
    """Find, check and load the teachers.

    Returns:
        The teachers, and what is wrong with the others, one text each.
    """
    labellers, problems = [], []
    for folder, named in zip(models.folders, models.named, strict=True):
        try:
            paths = [_find(folder, fold, models.checkpoint) for fold in models.folds or _trained_folds(folder, models)]
            labellers.append(Labeller(paths, named, models.device, models.mirroring, models.trust))
        except KDError as error:
            problems.append(str(error))
    hashes = [record.sha256 for labeller in labellers for record in labeller.records]
    if len(set(hashes)) < len(hashes):
        problems.append("a teacher is named twice: the same checkpoint would vote twice")
    return labellers, problems


def label_problems(labellers: Sequence[Labeller], structures: Structures) -> list[str]:
    """Why models cannot label a dataset's structures: names that do not fit, or a structure that none knows."""
    return map_problems(
        structures, [(str(one.folder), structures_of(one.dataset_json), one.named) for one in labellers], MEND
    )


def channel_problems(labeller: Labeller, names: Sequence[str]) -> list[str]:
    """Why a model cannot use scans with these channels."""
    own = [name.lower() for name in labeller.channels]
    if len(own) == len(names) and (len(own) == 1 or own == [name.lower() for name in names]):
        return []
    return [f"{labeller.folder} has the channels {', '.join(labeller.channels)}, the dataset {', '.join(names)}"]


def same_reader_problems(labellers: Sequence[Labeller]) -> list[str]:
    """Why several teachers do not see the same voxels: their readers orient images differently."""
    readers = sorted({labeller.reader.__name__ for labeller in labellers})
    if len(readers) < 2:
        return []
    return [f"the teachers read images with different readers of nnU-Net: {', '.join(readers)}"]


def teachers_as_dicts(labellers: Sequence[Labeller]) -> list[dict[str, Any]]:
    """The teachers' records for dataset.json, with their training cases, which a student of any fold needs."""
    plain = []
    for labeller in labellers:
        for record, cases in zip(labeller.records, labeller.training_cases, strict=True):
            values = asdict(record) | {"training_cases": cases.as_dict()}
            del values["seen_validation_cases"]
            plain.append(values)
    return plain


def _find(folder: Path, fold: str, checkpoint: str) -> CheckpointPath:
    if not (fold == "all" or fold.isdigit()):
        raise KDError(f"-f must be folds, such as 0 1 2 or all, found {fold}")
    path = CheckpointPath(folder, fold, checkpoint)
    missing = path.missing_files
    if missing:
        there = sorted(f"-f {fold_name(file.parent)} -chk {file.name}" for file in folder.glob("fold_*/*.pth"))
        found = f"; found {', '.join(there)}" if there else ""
        raise KDError(f"no teacher: {missing[0]} does not exist{found}")
    return path


def _trained_folds(folder: Path, models: Models) -> list[str]:
    """The folds that a model has; 0 if it has none, which is then reported as missing."""
    found = sorted(fold_name(file.parent) for file in folder.glob(f"fold_*/{models.checkpoint}"))
    return [fold for fold in found if fold != ALL] or found or ["0"]
