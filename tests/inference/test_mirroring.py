"""The mean over mirrored copies, against nnU-Net's own."""

import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from nnunetv2_kd.inference import mirroring
from nnunetv2_kd.inference.mirroring import MirroredMean


@pytest.mark.parametrize(
    ("shape", "axes"),
    [((6, 7, 8), (0, 1, 2)), ((6, 7, 8), (0, 2)), ((6, 7, 8), (1,)), ((9, 5), (0, 1))],
)
@pytest.mark.parametrize("threads", [1, 2])
def test_as_nnunet(shape, axes, threads, monkeypatch):
    """Equal to the last bit, twice with the same buffer, for a network whose next call overwrites its output."""
    monkeypatch.setattr(mirroring, "WORTH_THREADS", 1)
    dims = len(shape)
    convolution = (torch.nn.Conv2d if dims == 2 else torch.nn.Conv3d)(2, 3, 3, padding=1).requires_grad_(False)
    memory = torch.empty(1, 3, *shape)
    stock = nnUNetPredictor(device=torch.device("cpu"))
    stock.network, stock.allowed_mirroring_axes = convolution, axes
    mean = MirroredMean()
    for seed in range(2):
        data = torch.randn(1, 2, *shape, generator=torch.Generator().manual_seed(seed))
        expected = stock._internal_maybe_mirror_and_predict(data)
        found = mean(lambda part: memory.copy_(convolution(part)), data, axes, threads)
        assert torch.equal(found, expected)
