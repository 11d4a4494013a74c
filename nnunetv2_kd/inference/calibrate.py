"""Patches of real cases, for the quantisation of a network."""

from pathlib import Path

import numpy as np
from acvl_utils.cropping_and_padding.padding import pad_nd_image
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.paths import nnUNet_preprocessed
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class

from nnunetv2_kd.errors import KDError
from nnunetv2_kd.nnunet.datasets import dataset_id
from nnunetv2_kd.nnunet.splits import read_splits

CASES = 24


def calibration_patches(predictor: nnUNetPredictor, shape: tuple[int, ...], fold: str) -> list[np.ndarray]:
    """Patches of preprocessed training cases: the middle of each case, and a random position (seed 0).

    Args:
        predictor: of the model.
        shape: of its input, ``(1, C, *S)``.
        fold: the fold whose training cases are used; for ``all``, or if the splits are not known, any case.

    Raises:
        KDError: if the preprocessed data are not on this machine, or the model is a cascade.
    """
    configuration, dataset = predictor.configuration_manager, predictor.plans_manager.dataset_name
    if configuration.previous_stage_name is not None:
        raise KDError("int8 does not support a cascade, whose input includes another model's segmentation.")
    variable = "nnUNet_preprocessed"
    folder = (
        Path(nnUNet_preprocessed) / dataset / configuration.data_identifier if nnUNet_preprocessed.is_set() else None
    )
    if folder is None or not any(folder.glob("*.pkl")):
        line = f"nnUNetv2_preprocess -d {dataset_id(dataset)} -plans_name {predictor.plans_manager.plans_name}"
        raise KDError(
            f"int8 is calibrated on preprocessed training cases, but {folder or f'{variable} (not set)'} has none. "
            f"Preprocess them: {line}\nOr predict with a model that has been exported as int8."
        )
    data = infer_dataset_class(str(folder))(str(folder))
    splits = read_splits(folder.parent)
    known = splits[int(fold)]["train"] if fold.isdigit() and int(fold) < len(splits) else data.identifiers
    cases = sorted(set(data.identifiers) & set(known))
    chosen = [cases[i] for i in np.linspace(0, len(cases) - 1, min(CASES, len(cases))).astype(int)]
    rng = np.random.default_rng(0)
    patches = []
    for case in chosen:
        image = np.asarray(data.load_case(case)[0], dtype=np.float32)
        patches += [_patch(image, shape[2:], place) for place in (None, rng)]
    return patches


def _patch(image: np.ndarray, size: tuple[int, ...], rng: np.random.Generator | None) -> np.ndarray:
    """A patch ``(1, C, *size)`` of an image ``(C, *S)``, padded with 0 if the image is smaller; in 2d
    from one slice."""
    room = len(image.shape) - 1 - len(size)  # 1 for a 2d network, whose cases keep an axis of slices
    if room:
        depth = image.shape[1]
        image = image[:, depth // 2 if rng is None else int(rng.integers(depth))]
    image = pad_nd_image(image, size, "constant", {"constant_values": 0})
    free = [have - want for have, want in zip(image.shape[1:], size, strict=True)]
    starts = [f // 2 if rng is None else int(rng.integers(f + 1)) for f in free]
    window = [slice(None), *(slice(start, start + want) for start, want in zip(starts, size, strict=True))]
    return np.ascontiguousarray(image[tuple(window)][None])
