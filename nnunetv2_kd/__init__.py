"""Knowledge distillation for nnU-Net v2.

This module is imported while torch itself is being imported (see nnunetv2_kd.discovery), so it must not import torch.
"""

from nnunetv2_kd.version import __version__

__all__ = ["__version__"]
