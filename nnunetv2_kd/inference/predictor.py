"""nnU-Net's predictor, unchanged, and one that does everything outside the network faster."""

import contextlib
import io
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from batchgenerators.utilities.file_and_folder_operations import save_pickle
from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from torch import Tensor
from tqdm import tqdm

from nnunetv2_kd.errors import KDError, listing
from nnunetv2_kd.inference.device import check_device, prediction_threads
from nnunetv2_kd.inference.labels import segmentation_of
from nnunetv2_kd.inference.mirroring import MirroredMean
from nnunetv2_kd.inference.pipeline import Background, Prefetched
from nnunetv2_kd.inference.preprocess import check_channels, preprocess, preprocess_array
from nnunetv2_kd.inference.sessions import SessionNetwork
from nnunetv2_kd.networks.build import build_network, configuration_of, find_trainer
from nnunetv2_kd.networks.threads import limit_threads, torch_threads
from nnunetv2_kd.nnunet.checkpoint import read_checkpoint
from nnunetv2_kd.nnunet.images import cases_in
from nnunetv2_kd.nnunet.model_files import read_model_files
from nnunetv2_kd.nnunet.model_folder import FINAL, CheckpointPath
from nnunetv2_kd.nnunet.trained_models import TrainedModel
from nnunetv2_kd.teachers.load import load_strictly, plain_weights


def predictor_of(model: TrainedModel, device: torch.device) -> nnUNetPredictor:
    """nnU-Net's predictor with its own settings: step 0.5, Gaussian weights, mirroring."""
    return _initialize(nnUNetPredictor(device=device, allow_tqdm=False), model)


def fast_predictor_of(model: TrainedModel, device: torch.device) -> "FastPredictor":
    """Like `predictor_of`, but a `FastPredictor`."""
    return _initialize(FastPredictor(device=device, allow_tqdm=False), model)


def _initialize(predictor: Any, model: TrainedModel) -> Any:
    limit_threads(predictor.device)
    load_model(predictor, model.folder, [fold.name for fold in model.predicting_folds], FINAL)
    return predictor


def load_model(predictor: nnUNetPredictor, folder: Path, folds: Sequence[int | str], checkpoint_name: str) -> None:
    """Do what nnU-Net's ``initialize_from_trained_model_folder`` does, without running code that a model may contain.

    Args:
        predictor: to be initialized.
        folder: the model's folder.
        folds: the folds that predict together.
        checkpoint_name: the file name of each fold's checkpoint.

    Raises:
        KDError: if a file cannot be read, names or contains code, or does not fit the others.
    """
    plans, dataset_json = read_model_files(folder)
    paths = [CheckpointPath(folder, fold, checkpoint_name) for fold in folds]
    checkpoints = [read_checkpoint(path.checkpoint) for path in paths]
    if not checkpoints:
        raise KDError(f"{folder} has no fold with {checkpoint_name}. Train one, or name another with -chk.")
    name, configuration = checkpoints[0]["trainer_name"], checkpoints[0]["init_args"]["configuration"]
    if find_trainer(name) is None:
        raise KDError(
            f"The trainer {name} of {folder} is not installed, and may build another network than its plans "
            "describe: add its folder to the environment variable nnUNet_extTrainer."
        )
    manager, config = configuration_of(plans, configuration)
    network = build_network(plans, configuration, dataset_json, name, deep_supervision=False)
    for path, checkpoint in zip(paths, checkpoints, strict=True):
        load_strictly(network, checkpoint["network_weights"], path)
    axes = checkpoints[0].get("inference_allowed_mirroring_axes")
    weights = [plain_weights(checkpoint["network_weights"]) for checkpoint in checkpoints]
    network.load_state_dict(weights[0])
    predictor.manual_initialization(network, manager, config, weights, dataset_json, name, axes)


class FastPredictor(nnUNetPredictor):
    """nnU-Net's predictor with the same arguments and files, but with threads instead of processes.

    Cases that cannot be read, predicted or written are named in a KDError after all others are predicted. A file is
    written under a temporary name, and renamed once it is complete.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        with contextlib.redirect_stdout(io.StringIO()):  # nnU-Net remarks on a CUDA setting
            super().__init__(*args, **kwargs)
        self.allow_tqdm: bool = self.allow_tqdm
        self._mirrored_mean = MirroredMean()
        check_device(self.device)
        limit_threads(self.device)

    def initialize_from_trained_model_folder(
        self, model_training_output_dir: str, use_folds: Any, checkpoint_name: str = FINAL
    ) -> None:
        """Like nnU-Net's.

        Raises:
            KDError: if a fold's weights do not fit the network that plans.json describes, or nnU-Net cannot load them
                for another reason.
        """
        folder = Path(model_training_output_dir)
        folds = [use_folds] if isinstance(use_folds, str) else use_folds
        if folds is None:
            folds = self.auto_detect_available_folds(model_training_output_dir, checkpoint_name)
        try:
            load_model(self, folder, list(folds), checkpoint_name)
        except KDError as error:
            raise KDError(
                f"nnU-Net cannot load {checkpoint_name} of {model_training_output_dir}: {error}\nWeights, "
                "plans.json and dataset.json must be from the same training: copy its folder again."
            ) from error

    def _manage_input_and_output_lists(self, source: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(source, str):
            cases_in(Path(source), self.dataset_json["file_ending"])
        return super()._manage_input_and_output_lists(source, *args, **kwargs)

    def predict_from_files_sequential(
        self,
        list_of_lists_or_source_folder: Any,
        output_folder_or_list_of_truncated_output_files: Any,
        save_probabilities: bool = False,
        overwrite: bool = True,
        folder_with_segs_from_prev_stage: str | None = None,
    ) -> Any:
        return self.predict_from_files(
            list_of_lists_or_source_folder,
            output_folder_or_list_of_truncated_output_files,
            save_probabilities,
            overwrite,
            0,
            0,
            folder_with_segs_from_prev_stage,
        )

    def _internal_get_data_iterator_from_lists_of_filenames(
        self, inputs: list[list[str]], previous: Any, outputs: Any, num_processes: int
    ) -> Prefetched:
        items = list(zip(inputs, previous or [None] * len(inputs), outputs or [None] * len(inputs), strict=True))
        return Prefetched(self._preprocessed, items, self._workers(num_processes))

    def _workers(self, asked: int) -> int:
        """Number of threads besides the one that predicts; 0 if only one thread is allowed."""
        return min(asked, prediction_threads() - 1) if self.device.type == "cpu" else asked

    def _preprocessed(self, item: tuple[list[str], str | None, str | None]) -> tuple[np.ndarray, dict[str, Any]]:
        files, previous, _ = item
        return preprocess(files, previous, self.plans_manager, self.configuration_manager, self.dataset_json)

    def predict_from_data_iterator(
        self, data_iterator: Any, save_probabilities: bool = False, num_processes_segmentation_export: int = 0
    ) -> list[Any]:
        """Predict the cases from `_internal_get_data_iterator_from_lists_of_filenames`.

        Returns:
            Segmentations of cases that are not written into a file.

        Raises:
            KDError: names the cases that failed, and why; all others are predicted.
        """
        if not isinstance(data_iterator, Prefetched):  # nnU-Net's own iterator, for arrays
            return super().predict_from_data_iterator(
                data_iterator, save_probabilities, num_processes_segmentation_export
            )
        shown: bool = self.allow_tqdm
        self.allow_tqdm = shown and len(data_iterator) == 1  # with several, progress counts cases instead of patches
        background = Background(self._workers(num_processes_segmentation_export))
        found: dict[str, Any] = {}
        try:
            for (files, _, output), case in tqdm(data_iterator, disable=not shown or self.allow_tqdm, unit="case"):
                name = os.path.basename(output) if output else os.path.basename(files[0])
                try:
                    if isinstance(case, Exception):
                        raise case
                    image, properties = case
                    logits = finite(self.predict_logits_from_preprocessed_data(torch.from_numpy(image)).cpu())
                except Exception as error:  # any error: go on with the other cases, and report it at the end
                    background.failed[name] = error
                    continue
                self._finish(background, name, logits, properties, output, save_probabilities, found)
        finally:
            background.finish()
            self.allow_tqdm = shown
        if background.failed:
            done = len(data_iterator) - len(background.failed)
            title = f"{len(background.failed)} of {len(data_iterator)} cases were not predicted; {done} were:"
            raise KDError(listing(title, [f"{name}: {_one_line(error)}" for name, error in background.failed.items()]))
        return list(found.values())

    def _finish(
        self,
        background: Background,
        name: str,
        logits: Tensor,
        properties: dict[str, Any],
        output: str | None,
        save_probabilities: bool,
        found: dict[str, Any],
    ) -> None:
        def work() -> None:
            segmentation = self.segmentation_of(logits, properties, save_probabilities)
            if output is None:
                found[name] = segmentation
            else:
                self._write(segmentation, properties, Path(output))

        background(name, work)

    @torch.inference_mode()
    def _internal_maybe_mirror_and_predict(self, x: Tensor) -> Tensor:
        axes = self.allowed_mirroring_axes if self.use_mirroring else None
        if axes is None or self.device.type != "cpu":
            return super()._internal_maybe_mirror_and_predict(x)
        network = self.network.forward_shared if isinstance(self.network, SessionNetwork) else self.network
        return self._mirrored_mean(network, x, axes, prediction_threads())

    def segmentation_of(self, logits: Tensor, properties: dict[str, Any], probabilities: bool = False) -> Any:
        """The segmentation in the image's space; if asked for, with the probabilities."""
        threads = prediction_threads()
        if not probabilities:
            return segmentation_of(
                logits, properties, self.plans_manager, self.configuration_manager, self.label_manager, threads
            )
        with torch_threads(threads):
            return convert_predicted_logits_to_segmentation_with_correct_shape(
                logits,
                self.plans_manager,
                self.configuration_manager,
                self.label_manager,
                properties,
                return_probabilities=True,
                num_threads_torch=threads,
            )

    def predict_single_npy_array(
        self,
        input_image: np.ndarray,
        image_properties: dict[str, Any],
        segmentation_previous_stage: np.ndarray | None = None,
        output_file_truncated: str | None = None,
        save_or_return_probabilities: bool = False,
    ) -> Any:
        if segmentation_previous_stage is not None or output_file_truncated is not None:
            return super().predict_single_npy_array(
                input_image,
                image_properties,
                segmentation_previous_stage,
                output_file_truncated,
                save_or_return_probabilities,
            )
        check_channels(input_image, self.dataset_json)
        image, _, properties = preprocess_array(
            input_image, None, image_properties, self.plans_manager, self.configuration_manager, self.dataset_json
        )
        image = np.ascontiguousarray(image, dtype=np.float32)
        logits = finite(self.predict_logits_from_preprocessed_data(torch.from_numpy(image)).cpu())
        return self.segmentation_of(logits, properties, save_or_return_probabilities)

    def _write(self, segmentation: Any, properties: dict[str, Any], output: Path) -> None:
        """Write all files of a case, each renamed into place once it is complete."""
        with tempfile.TemporaryDirectory(prefix=".unfinished_", dir=output.parent) as folder:
            beside = Path(folder) / output.name
            if isinstance(segmentation, tuple):
                segmentation, probabilities = segmentation
                np.savez_compressed(f"{beside}.npz", probabilities=probabilities)
                save_pickle(properties, f"{beside}.pkl")
            writer = self.plans_manager.image_reader_writer_class()
            writer.write_seg(segmentation, f"{beside}{self.dataset_json['file_ending']}", properties)
            for file in Path(folder).iterdir():
                shutil.move(file, output.parent / file.name)


def finite(logits: Tensor) -> Tensor:
    """Check that logits are finite; otherwise nnU-Net would make a segmentation that looks valid.

    Raises:
        KDError: if one is not.
    """
    if not torch.isfinite(logits).all():
        raise KDError(
            "the network's output is not finite: the image contains values that are not finite, or so large that the "
            "network overflows"
        )
    return logits


def _one_line(error: Exception) -> str:
    """An error in one line, taken from a library's message of several lines."""
    if isinstance(error, KDError):
        return str(error)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1] if lines else 'no reason given'}"
