"""Which devices this machine has."""

import torch


def is_available(device: torch.device) -> bool:
    """Whether this machine has such a device. Devices other than CUDA and MPS count as available."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    return there.get(device.type, True)
