"""The stored teacher's output, from batches that are made by hand."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from nnunetv2_kd.regions import Labels
from nnunetv2_kd.teachers.stored.teacher import StoredTeacher


@pytest.mark.parametrize("dims", [2, 3])
def test_every_head_has_the_probabilities_of_its_own_voxels(dims):
    rng = np.random.default_rng(0)
    stored = rng.uniform(0.05, 0.45, (2, 2, *(4,) * dims)).astype(np.float32)
    image = rng.normal(size=(2, 1, *(4,) * dims)).astype(np.float32)
    targets = [torch.zeros(2, 1, *(size,) * dims) for size in (4, 2)]
    store = SimpleNamespace(header={})
    teacher = StoredTeacher(store, [], [], Labels(3, False, None), 1, torch.device("cpu"))
    batch = {"data": torch.from_numpy(np.concatenate((image, stored), axis=1)), "target": targets, "keys": ["a", "b"]}
    heads = teacher(batch).logits
    full = np.concatenate((1 - stored.sum(axis=1, keepdims=True), stored), axis=1)
    blocks = full.reshape(2, 3, *(2,) * (2 * dims)).mean(axis=tuple(range(3, 3 + 2 * dims, 2)))
    for head, expected in zip(heads, (full, blocks), strict=True):
        np.testing.assert_allclose(head.softmax(dim=1).numpy(), expected, atol=1e-5)
    np.testing.assert_array_equal(batch["data"].numpy(), image)
