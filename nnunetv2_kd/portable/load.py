"""Read any nnU-Net model, from a folder or a zip, with the same checks as for teachers."""

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path

import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_kd.errors import KDError
from nnunetv2_kd.inference.predict import check_model
from nnunetv2_kd.networks.build import build_network, find_trainer
from nnunetv2_kd.networks.threads import limit_threads
from nnunetv2_kd.nnunet.checkpoint import read_checkpoint
from nnunetv2_kd.nnunet.model_files import read_model_files
from nnunetv2_kd.nnunet.model_folder import CheckpointPath
from nnunetv2_kd.nnunet.model_zip import unpack
from nnunetv2_kd.teachers.load import ADD_TRAINER, load_strictly


def checkpoints_of_model(
    model: Path, configuration: str, folds: Sequence[str], checkpoint_name: str
) -> list[CheckpointPath]:
    """The checkpoints of a model's folds.

    Args:
        model: its folder, or a zip from ``nnUNetv2_export_model_to_zip``.
        configuration: the one to use if a zip has several models.

    Raises:
        KDError: if they do not exist.
    """
    if model.is_file():
        try:
            return [unpack(model, configuration, fold, checkpoint_name) for fold in folds]
        except KDError as error:
            raise KDError(_as_model_message(str(error))) from error
    if not model.is_dir():
        raise KDError(f"-m {model} is neither a model folder nor a zip.")
    check_model(model, folds, checkpoint_name)
    return [CheckpointPath(model, fold, checkpoint_name) for fold in folds]


def load_model(paths: Sequence[CheckpointPath]) -> tuple[nnUNetPredictor, list[str]]:
    """nnU-Net's predictor for a model, in PyTorch on the CPU, and messages about it.

    Args:
        paths: of the folds that predict together.

    Raises:
        KDError: if reading a checkpoint could run code, or its weights do not fit the plans.
    """
    checkpoints = [read_checkpoint(path.checkpoint) for path in paths]
    first = checkpoints[0]
    plans, dataset_json = read_model_files(paths[0].folder)
    trainer, configuration = str(first["trainer_name"]), first["init_args"]["configuration"]
    network = build_network(plans, configuration, dataset_json, trainer, deep_supervision=False)
    known = find_trainer(trainer) is not None
    notes = [] if known else [f"The trainer {trainer} is not installed: the network is built from the plans."]
    weights = []
    for path, checkpoint in zip(paths, checkpoints, strict=True):
        try:
            load_strictly(network, checkpoint["network_weights"], path)
        except KDError as error:
            raise KDError("\n".join([str(error), *notes, *([] if known else [ADD_TRAINER])])) from error
        weights.append({key: value.clone() for key, value in network.state_dict().items()})
    manager = PlansManager(plans)
    axes = first.get("inference_allowed_mirroring_axes")
    device = torch.device("cpu")
    limit_threads(device)
    with contextlib.redirect_stdout(io.StringIO()):  # nnU-Net prints a remark on a setting for CUDA
        predictor = nnUNetPredictor(device=device, allow_tqdm=False)
    predictor.manual_initialization(
        network.eval(),
        manager,
        manager.get_configuration(configuration),
        weights,
        dataset_json,
        trainer,
        tuple(axes) if axes is not None else None,
    )
    return predictor, notes


def _as_model_message(message: str) -> str:
    """Turn a refusal of a teacher into one of a model, with this command's flags."""
    for before, after in (
        ("The teacher ", ""),
        ("Name one of these under 'teacher:':", "Name one of these with -f FOLD and -chk CHECKPOINT:"),
        ("teacher: {folder: ...}", "-m FOLDER"),
    ):
        message = message.replace(before, after)
    return message
