"""nnU-Net's predictor and image reader for a trained model."""

from typing import Any

import torch
from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from nnunetv2_kd.nnunet.model_folder import FINAL
from nnunetv2_kd.nnunet.trained_models import TrainedModel


def predictor_of(model: TrainedModel, device: torch.device) -> nnUNetPredictor:
    """nnU-Net's predictor with its own settings: step 0.5, Gaussian weights, mirroring."""
    predictor = nnUNetPredictor(device=device, allow_tqdm=False)
    folds = tuple(fold.name for fold in model.predicting_folds)
    predictor.initialize_from_trained_model_folder(str(model.folder), folds, FINAL)
    return predictor


def reader_of(dataset_json: dict[str, Any]) -> type:
    """nnU-Net's reader for the dataset's images."""
    return determine_reader_writer_from_dataset_json(dataset_json, verbose=False)
