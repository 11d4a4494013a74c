"""What a teacher's features look like in every region of a whole case, for the terms that compare regions (ours).

Sums over the windows of nnU-Net's sliding window, not mirrored, each weighted by nnU-Net's Gaussian, as its predictions
are. Membership is that of the preprocessed segmentation; where an image is smaller than a window, what pads it is
background, as in training.
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
    labels = torch.from_numpy(np.maximum(segmentation[:1], 0).astype(np.int16))  # -1 is outside of the body: background
    if not manager.has_regions:
        return labels
    regions = [*manager.foreground_regions, *([manager.ignore_label] if manager.has_ignore_label else [])]
    return ConvertSegmentationToRegionsTransform(regions)(segmentation=labels)["segmentation"]


def padded(array: Tensor, size: Sequence[int]) -> Tensor:
    """``(C, *S)`` with zeros around, centred as nnU-Net's predictor does it, so that no side is below ``size``."""
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
        taps: of that network.
        data: the preprocessed image ``(C, *S)``.
        target: of the same size, see `target_of`.
        labels: how to read it.

    Returns:
        ``(K, C)`` float32 by stage; a region that the case has not is 0.
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
            # area averages, so that a window's mass is the same at every grid but for the cell size
            sums[stage] = sums.get(stage, 0) + torch.einsum("bkv,bcv->kc", mine, features.float().flatten(2))
            masses[stage] = masses.get(stage, 0) + mine.sum(dim=(0, 2))
    return {
        stage: (total / torch.where(masses[stage] > 0, masses[stage], 1).unsqueeze(1)).cpu().numpy()
        for stage, total in sums.items()
    }
