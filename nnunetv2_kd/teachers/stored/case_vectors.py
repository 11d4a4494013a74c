"""A teacher's mean feature vector in every region of a full case, for the terms that compare regions (ours).

Features are summed over the patches of nnU-Net's sliding window, without mirroring and weighted by nnU-Net's Gaussian,
like its predictions. Regions come from the preprocessed segmentation. If an image is smaller than a patch, the padding
counts as background, as in training.
"""

from collections.abc import Sequence

import numpy as np
import torch
from batchgeneratorsv2.transforms.utils.seg_to_regions import ConvertSegmentationToRegionsTransform
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.inference.sliding_window_prediction import compute_gaussian
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from torch import Tensor

from nnunetv2_kd.networks.taps import Taps
from nnunetv2_kd.regions import Labels, at_grid


def target_of(segmentation: np.ndarray, manager: LabelManager) -> Tensor:
    """The target that nnU-Net's training would make of a preprocessed segmentation ``(1, *S)``: ``(R, *S)``."""
    labels = torch.from_numpy(np.maximum(segmentation[:1], 0).astype(np.int16))  # -1: outside the body
    if not manager.has_regions:
        return labels
    regions = [*manager.foreground_regions, *([manager.ignore_label] if manager.has_ignore_label else [])]
    return ConvertSegmentationToRegionsTransform(regions)(segmentation=labels)["segmentation"]


def padded(array: Tensor, size: Sequence[int]) -> Tensor:
    """``(C, *S)`` padded with zeros so that no side is below ``size``, centred as in nnU-Net's predictor."""
    missing = [max(0, wanted - side) for wanted, side in zip(size, array.shape[-len(size) :], strict=True)]
    around = [side for gap in reversed(missing) for side in (gap // 2, gap // 2 + gap % 2)]
    return torch.nn.functional.pad(array, around)


@torch.no_grad()
def case_region_vectors(
    predictor: nnUNetPredictor, taps: Taps, data: Tensor, target: Tensor, labels: Labels
) -> dict[str, np.ndarray]:
    """Mean feature vector of every region, by stage.

    Args:
        predictor: initialised with the teacher's network.
        taps: on that network.
        data: the preprocessed image ``(C, *S)``.
        target: of the same size, see `target_of`.
        labels: how to read the target.

    Returns:
        ``(K, C)`` float32 by stage; 0 for a region that the case does not contain.
    """
    patch = predictor.configuration_manager.patch_size
    data, target = padded(data, patch), padded(target, patch)
    gaussian = compute_gaussian(tuple(patch), sigma_scale=1.0 / 8, value_scaling_factor=10, device=predictor.device)
    sums: dict[str, Tensor] = {}
    masses: dict[str, Tensor] = {}
    for window in predictor._internal_get_sliding_window_slicers(data.shape[1:]):
        membership = labels.regions(target[window][None].to(predictor.device)).dense() * gaussian.float()
        with torch.autocast(predictor.device.type, enabled=predictor.device.type == "cuda"):
            taps.recording = True
            predictor.network(data[window][None].to(predictor.device))
            taps.recording = False
        for stage, features in taps.take().items():
            mine = at_grid(membership, features.shape[2:]).flatten(2)
            # area averages, so that a patch has the same mass at every grid, up to the cell size
            sums[stage] = sums.get(stage, 0) + torch.einsum("bkv,bcv->kc", mine, features.float().flatten(2))
            masses[stage] = masses.get(stage, 0) + mine.sum(dim=(0, 2))
    return {
        stage: (total / torch.where(masses[stage] > 0, masses[stage], 1).unsqueeze(1)).cpu().numpy()
        for stage, total in sums.items()
    }
