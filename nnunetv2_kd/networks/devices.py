"""Which devices this machine has."""

import torch


def is_available(device: torch.device) -> bool:
    """Whether this machine has such a device; kinds that torch is not asked for count as there."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    return there.get(device.type, True)
