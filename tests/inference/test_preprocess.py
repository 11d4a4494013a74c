"""Preprocessing for prediction, against nnU-Net's own."""

import numpy as np
import pytest
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_kd.errors import KDError
from nnunetv2_kd.inference.preprocess import check_channels, preprocess_array
from tests.small_networks import DATASET_JSON
from tests.untrained_models import predicting_plans


@pytest.mark.parametrize("configuration", ["3d_fullres", "2d"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("scheme", ["ZScoreNormalization", "CTNormalization", "NoNormalization"])
@pytest.mark.parametrize("empty", [False, True])
def test_as_nnunet(configuration, masked, scheme, empty):
    plans = predicting_plans("nnUNetPlans", (4, 8))
    plans |= {"transpose_forward": [2, 0, 1], "transpose_backward": [1, 2, 0]}
    plans["foreground_intensity_properties_per_channel"] = {
        str(i): {"mean": 1.0, "std": 2.0, "percentile_00_5": -2.0, "percentile_99_5": 2.5} for i in range(2)
    }
    plans["configurations"][configuration] |= {
        "normalization_schemes": [scheme, "ZScoreNormalization"],
        "use_mask_for_norm": [masked, False],
    }
    manager = PlansManager(plans)
    config = manager.get_configuration(configuration)
    rng = np.random.default_rng(0)
    image = rng.normal(size=(2, 14, 15, 16)).astype(np.float32)
    if empty:  # a frame of 0 around, and a hole of 0 inside
        image[:, :3] = image[:, :, -2:] = image[:, 6:8, 6:8, 6:8] = 0
    expected_properties, properties = {"spacing": [0.9, 1.2, 1.4]}, {"spacing": [0.9, 1.2, 1.4]}
    expected, _, expected_properties = config.preprocessor_class(verbose=False).run_case_npy(
        image, None, expected_properties, manager, config, DATASET_JSON
    )
    found, segmentation, properties = preprocess_array(image, None, properties, manager, config, DATASET_JSON)
    assert segmentation is None
    assert found.dtype == expected.dtype
    assert np.array_equal(found, expected)
    assert properties == expected_properties


def test_another_number_of_channels():
    check_channels(np.zeros((1, 2, 2, 2)), DATASET_JSON)
    with pytest.raises(KDError, match="has 2 channels, the model expects 1: MRI"):
        check_channels(np.zeros((2, 2, 2, 2)), DATASET_JSON)
