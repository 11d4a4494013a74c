"""Stored probabilities stay aligned with the image in nnU-Net's loading and augmentation."""

import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from acvl_utils.cropping_and_padding.bounding_boxes import crop_and_pad_nd
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from scipy.ndimage import gaussian_filter

from nnunetv2_kd.errors import KDError
from nnunetv2_kd.teachers.stored import quantization
from nnunetv2_kd.teachers.stored.loading import Stacked, StoredDataset, StoredTransforms
from nnunetv2_kd.teachers.stored.write import compress

SHAPE = (24, 40, 36)


def teacher(image):
    """Probabilities of two classes. As a function of each voxel's intensity, they move with the image; because the
    function is linear, it can be applied before or after an interpolation, also at the border with nnU-Net's zeros."""
    return torch.cat((0.6 * image, 0.3 * image))


@pytest.fixture(scope="module")
def image():
    noise = np.random.default_rng(0).normal(size=SHAPE)
    smooth = gaussian_filter(noise, 3)
    return ((smooth - smooth.min()) / (smooth.max() - smooth.min())).astype(np.float32)[None]


class InMemory:
    """nnU-Net's dataset of one case."""

    identifiers = ["case"]  # noqa: RUF012

    def __init__(self, image):
        self.image = image

    def load_case(self, identifier):
        labels = (self.image > 0.6).astype(np.int16)
        return self.image, labels, None, {"class_locations": {1: np.argwhere(labels)[:50]}}


@pytest.fixture
def dataset(image, tmp_path):
    stored = quantization.encode(teacher(torch.from_numpy(image)).numpy())
    (tmp_path / "case.b2nd").write_bytes(compress(stored, (16, 24, 16)))
    return StoredDataset(InMemory(image), tmp_path)


def test_slices_as_an_array(dataset, image):
    lazy = dataset.load_case("case")[0]
    whole = np.concatenate((image, quantization.decode(np.asarray(lazy.stored[:]))))
    assert (lazy.shape, lazy.ndim, lazy.dtype) == (whole.shape, 4, np.float32)
    np.testing.assert_array_equal(lazy[:], whole)
    for box in ([[3, 9], [-4, 12], [30, 50]], [[-2, 30], [0, 40], [5, 6]]):
        np.testing.assert_array_equal(crop_and_pad_nd(lazy, box, 0), crop_and_pad_nd(whole, box, 0))
    with pytest.raises(IndexError, match="expected all channels"):
        lazy[0]


def test_goes_to_worker_processes(dataset):
    again = pickle.loads(pickle.dumps((dataset, StoredTransforms(None, 2))))
    np.testing.assert_array_equal(again[0]["case"][0][:], dataset["case"][0][:])


def training_transforms(patch, dummy_2d, only_spatial):
    """nnU-Net's own transforms, with rotation and scaling in every call."""
    made = nnUNetTrainer.get_training_transforms(
        patch, (-0.5, 0.5), [[1] * len(patch)], tuple(range(len(patch))), dummy_2d
    )
    if only_spatial:
        made.transforms = [t for t in made.transforms if not isinstance(t, RandomTransform)]
    for transform in made.transforms:
        if isinstance(transform, SpatialTransform):
            transform.p_rotation = transform.p_scaling = 1
    return made


def loader(dataset, transforms, patch):
    larger = tuple(round(1.3 * side) for side in patch)
    manager = SimpleNamespace(all_labels=[0, 1], has_ignore_label=False)
    return nnUNetDataLoader(dataset, 2, larger, patch, manager, 0.33, transforms=transforms)


@pytest.mark.parametrize(
    ("patch", "dummy_2d"), [((16, 24, 16), False), ((16, 24, 16), True), ((24, 20), False)], ids=["3d", "dummy", "2d"]
)
def test_targets_are_the_teachers_on_the_augmented_image(dataset, patch, dummy_2d):
    """Under rotation, scaling, mirroring and cropping past the border, all of nnU-Net's."""
    np.random.seed(0)
    torch.manual_seed(0)
    transforms = StoredTransforms(training_transforms(patch, dummy_2d, only_spatial=True), 2)
    batches = loader(dataset, transforms, patch)
    if dummy_2d:
        batches.patch_size = (patch[0], *batches.patch_size[1:])
        batches.need_to_pad[0] = 0
    for _ in range(5):
        batch = next(batches)["data"]
        assert batch.shape == (2, 3, *patch)
        for image, stored in zip(batch[:, :1], batch[:, 1:], strict=True):
            torch.testing.assert_close(stored, teacher(image), atol=quantization.MAX_ERROR + 1e-5, rtol=0)


def test_the_same_without_alignment_would_be_seen(dataset):
    """The test above would notice if targets were mirrored differently from the image."""
    batch = next(loader(dataset, StoredTransforms(training_transforms((16, 24, 16), False, True), 2), (16, 24, 16)))
    image, stored = batch["data"][0, :1], batch["data"][0, 1:].flip(1)
    assert float((stored - teacher(image)).abs().mean()) > 0.01


def test_images_and_targets_are_nnunets_own(dataset, image):
    """All of nnU-Net's augmentation: with a store the network sees the same batches as without."""
    batches = []
    for with_store in (False, True):
        np.random.seed(1)
        torch.manual_seed(1)
        transforms = training_transforms((16, 24, 16), False, only_spatial=False)
        data = dataset if with_store else dataset.plain
        batches.append(next(loader(data, StoredTransforms(transforms, 2) if with_store else transforms, (16, 24, 16))))
    plain, stored = batches
    assert torch.equal(plain["data"], stored["data"][:, :1])
    assert torch.equal(plain["target"][0], stored["target"][0])
    assert float(stored["data"][:, 1:].min()) >= 0  # noise, contrast and gamma leave probabilities alone
    assert float(stored["data"][:, 1:].max()) <= 1


def test_an_augmentation_that_loses_the_targets_is_refused():
    class Forgets(BasicTransform):
        def _apply_to_image(self, img, **params):
            return img

        def _apply_to_segmentation(self, segmentation, **params):
            return segmentation

    with pytest.raises(KDError, match="has no _apply_to_regr_target"):
        StoredTransforms(Forgets(), 1)(image=torch.zeros(2, 4, 4), segmentation=torch.zeros(1, 4, 4))


def test_integers_are_read_as_floats():
    lazy = Stacked(np.ones((1, 2, 2), np.int16), np.full((1, 2, 2), 255, np.uint8))
    assert lazy[:].tolist() == np.ones((2, 2, 2)).tolist()
