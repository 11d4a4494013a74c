"""Segmentations from logits, against nnU-Net's own function."""

import numpy as np
import pytest
import torch
from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from skimage.transform import resize

from nnunetv2_kd.inference.labels import largest, segmentation_of
from tests.small_networks import DATASET_JSON
from tests.untrained_models import predicting_plans


@pytest.mark.parametrize("seed", range(24))
def test_what_scikit_image_resamples(seed):
    """Noise, of which every voxel is contested; with ties; smaller and larger; axes of one voxel."""
    rng = np.random.default_rng(seed)
    classes, source, shape = int(rng.integers(2, 6)), rng.integers(1, 20, 3), rng.integers(1, 30, 3)
    logits = (rng.normal(size=(classes, *source)) * rng.choice([0.01, 1, 30])).astype(np.float16)
    if seed % 3 == 0:
        logits = np.round(logits * 2) / 2
    expected = np.zeros((classes, *shape), np.float16)
    for k in range(classes):
        expected[k] = resize(logits[k].astype(float), tuple(shape), 1, mode="edge", anti_aliasing=False)
    assert np.array_equal(largest(torch.from_numpy(logits), tuple(shape), 1), expected.argmax(0))


@pytest.mark.parametrize("threads", [1, 3])
def test_many_slabs_and_threads(threads):
    logits = torch.randn(4, 40, 11, 12, generator=torch.Generator().manual_seed(0)).half()
    assert np.array_equal(largest(logits, (40, 11, 12), threads), logits.numpy().argmax(0))
    assert np.array_equal(largest(logits, (70, 15, 9), threads), largest(logits, (70, 15, 9), 1))


@pytest.mark.parametrize(
    ("configuration", "spacing", "change"),
    [
        ("3d_fullres", [1.0, 1.0, 1.0], {}),  # nothing to resample
        ("3d_fullres", [0.8, 1.3, 1.1], {}),
        ("3d_fullres", [4.0, 0.9, 0.9], {}),  # thick slices, and as many of them: in two dimensions
        ("3d_fullres", [6.0, 0.9, 0.9], {"spacing": [3.0, 1.0, 1.0]}),  # thick slices, and others: nnU-Net's own way
        ("2d", [4.0, 0.9, 1.2], {}),
        ("3d_fullres", [0.8, 1.3, 1.1], {"resampling_fn_probabilities_kwargs": {"is_seg": False, "order": 3}}),
    ],
)
@pytest.mark.parametrize("regions", [False, True])
def test_as_nnunet(configuration, spacing, change, regions):
    plans = predicting_plans("nnUNetPlans", (4, 8))
    plans |= {"transpose_forward": [1, 0, 2], "transpose_backward": [1, 0, 2]}
    settings = plans["configurations"][configuration]
    settings |= change
    dataset_json = dict(DATASET_JSON)
    if regions:
        dataset_json |= {"labels": {"background": 0, "whole": [1, 2], "a": [1]}, "regions_class_order": [2, 1]}
    manager = PlansManager(plans)
    config = manager.get_configuration(configuration)
    labels = manager.get_label_manager(dataset_json)
    forward = [spacing[axis] for axis in plans["transpose_forward"]]
    cropped = (12, 14, 13)
    target = settings["spacing"] if configuration != "2d" else [forward[0], *settings["spacing"]]
    source = [round(size * have / want) for size, have, want in zip(cropped, forward, target, strict=True)]
    if forward[0] == 4.0 or spacing[0] == 4.0:
        source[plans["transpose_forward"].index(0)] = cropped[plans["transpose_forward"].index(0)]
    properties = {
        "spacing": spacing,
        "shape_after_cropping_and_before_resampling": cropped,
        "shape_before_cropping": (15, 16, 17),
        "bbox_used_for_cropping": [[1, 13], [2, 16], [0, 13]],
    }
    heads = labels.num_segmentation_heads
    logits = torch.randn(heads, *source, generator=torch.Generator().manual_seed(0)).half()
    expected = convert_predicted_logits_to_segmentation_with_correct_shape(
        logits.numpy(), manager, config, labels, properties, num_threads_torch=1
    )
    found = segmentation_of(logits, properties, manager, config, labels, 1)
    assert found.dtype == expected.dtype
    assert len(np.unique(found)) > 1
    assert np.array_equal(found, expected)
