"""The runner's resampling is nnU-Net's, bit for bit."""

import numpy as np
import pytest
from nnunetv2.preprocessing.resampling.default_resampling import compute_new_shape, resample_data_or_seg_to_shape

from nnunetv2_kd.runner import resampling
from nnunetv2_kd.runner.errors import RunnerError
from nnunetv2_kd.runner.model import Resampling

RULE = Resampling("resample_data_or_seg_to_shape", 3, 0, None, 3.0)
CASES = {
    "isotropic": ((9, 11, 13), (1.0, 1.0, 1.0), (0.8, 1.3, 0.9)),
    "same": ((9, 11, 13), (1.0, 1.0, 1.0), (1.0, 1.0, 1.0)),
    "thick slices": ((5, 12, 11), (5.0, 1.0, 1.1), (2.2, 0.9, 1.3)),
    "thick slices, as many": ((5, 12, 11), (5.0, 1.0, 1.0), (5.0, 0.9, 1.3)),
    "thick slices in the middle": ((12, 4, 11), (1.0, 6.0, 1.0), (1.1, 3.0, 1.2)),
    "thick slices at the end": ((12, 11, 4), (1.0, 1.0, 6.0), (1.1, 1.2, 3.0)),
    "thick afterwards": ((12, 11, 14), (1.0, 1.0, 1.0), (4.0, 0.9, 0.9)),
    "two thick axes": ((12, 5, 6), (1.0, 5.0, 5.0), (1.0, 4.0, 4.0)),
    "one slice": ((1, 12, 11), (999.0, 1.0, 1.0), (999.0, 0.7, 1.2)),
}


def kwargs(rule: Resampling, is_seg: bool) -> dict:
    return {
        "is_seg": is_seg,
        "order": rule.order,
        "order_z": rule.order_z,
        "force_separate_z": rule.force_separate_z,
        "separate_z_anisotropy_threshold": rule.threshold,
    }


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("order", "order_z"), [(3, 0), (1, 0), (0, 0), (3, 1), (1, 3)])
@pytest.mark.parametrize("force", [None, False, True])
def test_images(case, order, order_z, force):
    shape, old, new = CASES[case]
    if force and case in ("isotropic", "same", "thick afterwards"):
        pytest.skip("nnU-Net cannot be forced where no axis is the thickest")
    rule = Resampling(RULE.function, order, order_z, force, 3.0)
    image = np.random.default_rng(0).normal(size=(1, *shape)).astype(np.float32)
    wanted = compute_new_shape(shape, old, new)
    assert resampling.new_shape(shape, old, new) == tuple(wanted)
    expected = resample_data_or_seg_to_shape(image.copy(), wanted, old, new, **kwargs(rule, False))[0]
    found = resampling.resample(image[0], tuple(wanted), rule, old, new)
    assert found.dtype == expected.dtype == np.float32
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("order", "order_z"), [(1, 0), (0, 0), (1, 1)])
def test_labels(case, order, order_z):
    shape, old, new = CASES[case]
    rule = Resampling(RULE.function, order, order_z, None, 3.0)
    labels = np.random.default_rng(1).integers(-1, 4, (1, *shape)).astype(np.float32)
    wanted = compute_new_shape(shape, old, new)
    expected = resample_data_or_seg_to_shape(labels.copy(), wanted, old, new, **kwargs(rule, True))[0]
    np.testing.assert_array_equal(resampling.resample_labels(labels[0], tuple(wanted), rule, old, new), expected)


def test_doubled_labels_tie_everywhere():
    labels = np.random.default_rng(1).integers(0, 3, (1, 6, 7, 8)).astype(np.float32)
    rule = Resampling(RULE.function, 1, 0, None, 3.0)
    spacings = (2.0, 2.0, 2.0), (1.0, 1.0, 1.0)
    expected = resample_data_or_seg_to_shape(labels.copy(), (12, 14, 16), *spacings, **kwargs(rule, True))[0]
    np.testing.assert_array_equal(resampling.resample_labels(labels[0], (12, 14, 16), rule, *spacings), expected)


def test_other_functions():
    image = np.zeros((4, 4, 4), np.float32)
    still = Resampling("no_resampling_hack", 3, 0, None, 3.0)
    assert resampling.resample(image, (5, 5, 5), still, (1, 1, 1), (2, 2, 2)) is image
    strange = Resampling("resample_torch_fornnunet", 3, 0, None, 3.0)
    with pytest.raises(RunnerError, match="cannot resample with resample_torch_fornnunet"):
        resampling.resample(image, (5, 5, 5), strange, (1, 1, 1), (2, 2, 2))
