"""Sums over regions on a CPU, run by run.

Neighbouring voxels mostly belong to the same region. A row of such voxels is a run, with a first voxel, a last one and
a code. Sums over regions are then sums over runs, which cost hardly more than reading the features once, however many
regions there are. The loops are compiled by numba; matrix products or scattering would take several times as long.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nnunetv2_kd.regions import cpu_kernels

not_compiled = torch.compiler.disable  # torch cannot trace numpy and numba


class RunLengthSums:
    """See `nnunetv2_kd.regions.grid_sums.GridSums`; arguments as for `grid_sums`.

    Samples are processed in threads. Torch would record gradients there even if the caller turned them off, so numpy is
    used.
    """

    @not_compiled
    def __init__(self, codes: Tensor, count: int, size: tuple[int, ...]) -> None:
        self.batch = len(codes)
        self.count = count
        self.size = size
        flat = (1,) * (3 - len(size))  # a 2d image is a 3d image of one slice
        own = codes.contiguous().view(len(codes), *flat, *codes.shape[1:]).numpy()
        factors = tuple(fine // coarse for fine, coarse in zip(own.shape[1:], (*flat, *size), strict=True))
        self._samples = self._of_every_sample(lambda sample: cpu_kernels.find_runs(own[sample], count, factors))

    @not_compiled
    def mass(self) -> Tensor:
        return torch.from_numpy(np.stack([self._mass(*runs) for runs in self._samples])).float()

    def _mass(self, first: np.ndarray, last: np.ndarray, code: np.ndarray, share: np.ndarray) -> np.ndarray:
        return np.bincount(code, weights=(last - first) * share.astype(np.float64), minlength=self.count)

    @not_compiled
    def sums(self, features: Tensor, weights: Tensor | None = None) -> Tensor:
        features = features.detach()
        # weights of 1 instead of a second compiled function: it is as fast, and they are only as large as one channel
        scales = torch.ones(self.size).expand(self.batch, *self.size) if weights is None else weights.detach()
        sums = np.empty((self.batch, self.count, features.shape[1]), np.float32)

        def of_sample(sample: int) -> None:
            scale = scales[sample].contiguous().view(-1).numpy()
            for channels, part in _eight_at_a_time(features[sample]):
                of_part = cpu_kernels.sums(part.numpy(), scale, *self._samples[sample], self.count)
                sums[sample, :, channels] = of_part[:, : channels.stop - channels.start]

        self._of_every_sample(of_sample)
        return torch.from_numpy(sums)

    @not_compiled
    def spread(self, values: Tensor) -> Tensor:
        by_channel = values.detach().mT.contiguous().numpy()
        maps = np.empty((self.batch, values.shape[2], *self.size), np.float32)

        def of_sample(sample: int) -> None:
            cpu_kernels.spread(by_channel[sample], *self._samples[sample], maps[sample].reshape(len(maps[sample]), -1))

        self._of_every_sample(of_sample)
        return torch.from_numpy(maps)

    @not_compiled
    def project(self, values: Tensor, features: Tensor) -> Tensor:
        features = features.detach()
        values = F.pad(values.detach(), (0, -values.shape[2] % 8))  # padded as the features are
        maps: np.ndarray = np.zeros((self.batch, *self.size), np.float32)

        def of_sample(sample: int) -> None:
            for channels, part in _eight_at_a_time(features[sample]):
                of_part = values[sample, :, channels.start : channels.start + 8].contiguous()
                cpu_kernels.add_projections(
                    of_part.numpy(), part.numpy(), *self._samples[sample], maps[sample].reshape(-1)
                )

        self._of_every_sample(of_sample)
        return torch.from_numpy(maps)

    def _of_every_sample(self, call: Callable[[int], object]) -> list:
        threads = min(torch.get_num_threads(), self.batch)
        if threads <= 1:
            return [call(sample) for sample in range(self.batch)]
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(call, range(self.batch)))


def _eight_at_a_time(features: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Split ``(C, *S)`` into slices of 8 channels and their ``(8, V)`` float32, the last padded with 0. Eight sums
    fit into a processor's registers, and features of another type or order are copied eight channels at a time."""
    for start in range(0, len(features), 8):
        part = features[start : start + 8].float().flatten(1).contiguous()
        missing = 8 - len(part)
        yield slice(start, start + len(part)), F.pad(part, (0, 0, 0, missing)) if missing else part
