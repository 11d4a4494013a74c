"""From image to segmentation, the runner gives nnU-Net's voxels if both networks give the same numbers."""

import numpy as np
import pytest
import torch
from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape
from nnunetv2.inference.sliding_window_prediction import compute_gaussian
from nnunetv2.postprocessing.remove_connected_components import remove_all_but_largest_component_from_segmentation
from nnunetv2.utilities.label_handling.label_handling import convert_labelmap_to_one_hot

from nnunetv2_kd.runner.errors import RunnerError
from nnunetv2_kd.runner.labels import keep_largest
from nnunetv2_kd.runner.preprocessing import preprocess
from nnunetv2_kd.runner.sliding_window import gaussian_weights
from tests.runner.models import dataset_json_of, model_of_nnunet, network_of, nnunet_of, plans_of, runner_of

LOGITS = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}
SCHEMES = (
    "CTNormalization",
    "ZScoreNormalization",
    "NoNormalization",
    "RescaleTo01Normalization",
    "RGBTo01Normalization",
)


def image_of(shape, channels=1, seed=0, border=2, whole=False):
    """Blobs of 0 to 255 in a border of zeros, with holes of zeros."""
    rng = np.random.default_rng(seed)
    image = np.zeros((channels, *shape), np.float32)
    inside = tuple(slice(border, size - border) if size > 3 * border else slice(None) for size in shape)
    image[(slice(None), *inside)] = rng.integers(0, 256, image[(slice(None), *inside)].shape)
    return np.round(image) if whole else image


def nnunet_input(image, spacing, predictor, previous=None):
    plans, configuration = predictor.plans_manager, predictor.configuration_manager
    properties = {"spacing": list(spacing)}
    seg = None if previous is None else previous[None].astype(np.float32)
    data, seen, properties = configuration.preprocessor_class(verbose=False).run_case_npy(
        image, seg, properties, plans, configuration, predictor.dataset_json
    )
    if previous is not None:
        labels = predictor.label_manager.foreground_labels
        data = np.vstack((data, convert_labelmap_to_one_hot(seen[0], labels, data.dtype)))
    return data, properties


def nnunet_segmentation(image, spacing, predictor, previous=None, probabilities=False):
    data, properties = nnunet_input(image, spacing, predictor, previous)
    data = torch.from_numpy(np.ascontiguousarray(data, dtype=np.float32))
    return convert_predicted_logits_to_segmentation_with_correct_shape(
        predictor.predict_logits_from_preprocessed_data(data),
        predictor.plans_manager,
        predictor.configuration_manager,
        predictor.label_manager,
        properties,
        return_probabilities=probabilities,
    )


def check(plans, dataset_json, shape, spacing, axes=(0, 1, 2), folds=1, previous=None, tmp_path=None, channels=None):
    """Check that 0 voxels differ, with logits in memory and in a file."""
    channels = channels or len(dataset_json["channel_names"])
    regions = "regions_class_order" in dataset_json
    heads = len(dataset_json["labels"]) - (1 if regions else 0)
    networks = [network_of(heads, seed) for seed in range(folds)]
    predictor = nnunet_of(plans, dataset_json, networks, axes)
    image = image_of(shape, channels)
    expected = nnunet_segmentation(image, spacing, predictor, previous)
    model = model_of_nnunet(predictor)
    for memory in (1.0, 0.0) if tmp_path is not None else (1.0,):
        runner = runner_of(model, [networks], memory, tmp_path)
        found = runner.segment(lambda: (image.copy(), spacing), previous)
        assert found.dtype == expected.dtype
        assert found.shape == expected.shape == tuple(shape)
        assert (found != expected).sum() == 0
    return expected


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("transpose", [(0, 1, 2), (2, 0, 1)])
def test_what_the_network_sees(scheme, mask, transpose):
    plans = plans_of(schemes=(scheme, "ZScoreNormalization"), use_mask_for_norm=[mask] * 2, transpose=transpose)
    predictor = nnunet_of(plans, dataset_json_of(2), [network_of(4)], None)
    image, spacing = image_of((14, 15, 17), 2), (1.0, 0.9, 1.2)
    expected, properties = nnunet_input(image.copy(), spacing, predictor)
    model = model_of_nnunet(predictor)
    found, frame = preprocess(image.copy(), spacing, model.configurations[0])
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected)
    assert [list(part) for part in frame.box] == properties["bbox_used_for_cropping"]


@pytest.mark.parametrize("channels_in_memory", ["C", "F"])
def test_sums_depend_on_how_an_image_lies_in_memory(channels_in_memory):
    """nibabel's arrays have the opposite order in memory."""
    predictor = nnunet_of(plans_of(), dataset_json_of(), [network_of(4)], None)
    image = np.asarray(image_of((31, 33, 29)) * np.float32(1.7) + 3, order=channels_in_memory)
    expected, _ = nnunet_input(image, (1.0, 1.0, 1.0), predictor)
    model = model_of_nnunet(predictor)
    found, _ = preprocess(image.copy(order="K"), (1.0, 1.0, 1.0), model.configurations[0])
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("patch", [(8, 10, 12), (40, 56, 40), (7, 9), (128, 64, 96)])
def test_gaussian(patch):
    expected = compute_gaussian(patch, 1 / 8, 10, device=torch.device("cpu")).numpy()
    np.testing.assert_array_equal(gaussian_weights(patch), expected)


SHAPES = {
    "several tiles": ((21, 23, 27), (1.0, 1.0, 1.0)),
    "same spacing": ((15, 16, 18), (1.3, 1.1, 0.9)),
    "thick slices": ((6, 25, 24), (6.0, 1.0, 1.0)),
    "smaller than a patch": ((5, 4, 7), (1.0, 1.0, 1.0)),
    "one slice": ((1, 20, 21), (3.0, 1.0, 1.0)),
    "large voxels": ((9, 8, 7), (4.0, 3.5, 4.5)),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("regions", [False, True])
def test_shapes(shape, regions, tmp_path):
    expected = check(plans_of(), dataset_json_of(regions=regions), *SHAPES[shape], tmp_path=tmp_path)
    assert len(np.unique(expected)) > 1


@pytest.mark.parametrize("shape", ["several tiles", "thick slices", "one slice"])
@pytest.mark.parametrize("regions", [False, True])
def test_2d_network_on_slices(shape, regions):
    check(plans_of(2), dataset_json_of(regions=regions), *SHAPES[shape], axes=(0, 1))


@pytest.mark.parametrize(
    "settings",
    [
        {"transpose": (2, 0, 1)},
        {"transpose": (1, 0, 2)},
        {"spacing": [4.0, 0.8, 0.8]},
        {"spacing": [5.0, 0.8, 0.8], "patch_size": [3, 14, 14]},
        {"resampling_fn_probabilities_kwargs": LOGITS | {"order": 3}},
        {"resampling_fn_probabilities_kwargs": LOGITS | {"order": 0}},
        {"resampling_fn_probabilities_kwargs": LOGITS | {"order_z": 1}, "spacing": [4.0, 0.8, 0.8]},
        {"resampling_fn_probabilities_kwargs": LOGITS | {"force_separate_z": False}, "spacing": [4.0, 0.8, 0.8]},
        {"order": 1},
    ],
    ids=str,
)
def test_plans(settings, tmp_path):
    check(plans_of(**settings), dataset_json_of(), (19, 23, 22), (1.0, 1.0, 1.1), tmp_path=tmp_path)
    check(plans_of(**settings), dataset_json_of(regions=True), (19, 23, 22), (1.0, 1.0, 1.1))


@pytest.mark.parametrize("axes", [None, (0,), (1, 2)])
def test_mirroring_axes(axes):
    check(plans_of(), dataset_json_of(), (15, 16, 18), (1.0, 1.0, 1.0), axes=axes)


def test_folds_are_averaged(tmp_path):
    check(plans_of(), dataset_json_of(), (15, 16, 18), (1.0, 1.0, 1.0), folds=3, tmp_path=tmp_path)


def test_many_labels():
    expected = check(plans_of(), dataset_json_of(labels=280), (15, 16, 18), (1.0, 1.0, 1.0), axes=None)
    assert expected.dtype == np.uint16


def test_only_background():
    predictor = nnunet_of(plans_of(), dataset_json_of(), [network_of(4)], (0, 1, 2))
    image = np.zeros((1, 9, 10, 11), np.float32)
    expected = nnunet_segmentation(image, (1.0, 1.0, 1.0), predictor)
    runner = runner_of(model_of_nnunet(predictor), [[network_of(4)]])
    assert (runner.segment(lambda: (image.copy(), (1.0, 1.0, 1.0))) == expected).all()


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (6.0, 1.0, 1.0), (1.3, 1.1, 0.9)])
def test_cascade(spacing):
    plans = plans_of(previous_stage="3d_lowres")
    previous = np.random.default_rng(3).integers(0, 4, (13, 16, 17))
    check(plans, dataset_json_of(), (13, 16, 17), spacing, previous=previous)


def test_cascade_without_its_first_stage():
    predictor = nnunet_of(plans_of(previous_stage="3d_lowres"), dataset_json_of(), [network_of(4)], None)
    runner = runner_of(model_of_nnunet(predictor), [[network_of(4)]])
    with pytest.raises(RunnerError, match="previous stage, 3d_lowres, is missing"):
        runner.segment(lambda: (image_of((9, 9, 9)), (1.0, 1.0, 1.0)))
    with pytest.raises(RunnerError, match="has size"):
        runner.segment(lambda: (image_of((9, 9, 9)), (1.0, 1.0, 1.0)), np.zeros((4, 4, 4)))


@pytest.mark.parametrize("regions", [False, True])
def test_several_models_are_averaged(regions):
    dataset_json = dataset_json_of(regions=regions)
    heads = 3 if regions else 4
    networks = [network_of(heads, seed) for seed in (0, 1)]
    predictors = [
        nnunet_of(plans_of(transpose=(1, 0, 2)), dataset_json, networks[:1], (0, 1, 2)),
        nnunet_of(plans_of(2), dataset_json, networks[1:], (0, 1)),
    ]
    image, spacing = image_of((15, 16, 18)), (1.0, 1.1, 1.0)
    mean = sum(nnunet_segmentation(image, spacing, p, probabilities=True)[1] for p in predictors) / 2
    expected = predictors[0].label_manager.convert_probabilities_to_segmentation(mean)
    runner = runner_of(model_of_nnunet(*predictors), [networks[:1], networks[1:]])
    found = runner.segment(lambda: (image.copy(), spacing))
    assert (found != expected).sum() == 0
    assert len(np.unique(found)) > 2


@pytest.mark.parametrize("rule", [1, [1, 2], [1, 2, 3], [[1, 2], 3]], ids=str)
def test_postprocessing(rule):
    rng = np.random.default_rng(0)
    segmented = (rng.integers(1, 4, (12, 13, 14)) * (rng.random((12, 13, 14)) < 0.04)).astype(np.uint8)
    segmented[3:6, 3:6, 3:6] = 2
    segmented[6:8, 3:6, 3:6] = 1
    asked = [tuple(part) if isinstance(part, list) else part for part in rule] if isinstance(rule, list) else rule
    expected = remove_all_but_largest_component_from_segmentation(segmented, asked)
    assert (keep_largest(segmented, [rule]) == expected).all()
    assert (expected != segmented).any()


def test_what_is_no_number():
    def broken(patch):
        return np.full((1, 4, *patch.shape[2:]), np.nan, np.float32)

    predictor = nnunet_of(plans_of(), dataset_json_of(), [network_of(4)], None)
    runner = runner_of(model_of_nnunet(predictor), [[broken]])
    with pytest.raises(RunnerError, match="not finite"):
        runner.segment(lambda: (image_of((9, 9, 9)), (1.0, 1.0, 1.0)))


def test_values_that_are_not_rgb():
    predictor = nnunet_of(plans_of(schemes=("RGBTo01Normalization",)), dataset_json_of(), [network_of(4)], None)
    runner = runner_of(model_of_nnunet(predictor), [[network_of(4)]])
    with pytest.raises(RunnerError, match="RGB values must be 0 to 255"):
        runner.segment(lambda: (image_of((9, 9, 9)) * 2, (1.0, 1.0, 1.0)))
