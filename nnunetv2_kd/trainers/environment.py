"""What must be right outside before a training starts, and what may be switched on inside."""

import functools
import random
import tempfile
from pathlib import Path

import numpy as np
import torch
from nnunetv2.paths import nnUNet_results
from torch import Tensor, nn

from nnunetv2_kd.errors import KDError


def check_results_folder() -> None:
    """nnUNet_results is set and can be written to.

    Raises:
        KDError: says what is wrong and what to type.
    """
    if not nnUNet_results.is_set():
        raise KDError(
            "The environment variable nnUNet_results is not set, so there is nowhere to write the student to and no "
            "teacher to find. Set it: export nnUNet_results=/path/to/nnUNet_results"
        )
    folder = Path(nnUNet_results)
    problem = why_not_writable(folder)
    if problem:
        raise KDError(
            f"nnUNet_results={folder} cannot be written to ({problem}). Mend its permissions, or point it elsewhere: "
            "export nnUNet_results=/path/to/nnUNet_results"
        )


def why_not_writable(folder: Path) -> str:
    """What keeps files from being written into a folder, which is made where it is missing; "" for nothing."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return ""
    except OSError as error:
        return error.strerror or str(error)


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy (augmentation) and torch (weights)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def cpu_has_bfloat16() -> bool:
    """Whether this processor has instructions for bfloat16; without them it is slower than float32."""
    return any(getattr(torch.cpu, f"_is_{name}_supported", lambda: False)() for name in ("avx512_bf16", "amx_tile"))


def use_bfloat16(network: nn.Module) -> None:
    """Let a network run under bfloat16 autocast and channels-last on the CPU while it is trained or teaches.

    nnU-Net uses no autocast on the CPU. Its loss must not run in bfloat16, so the outputs are cast back to float32. In
    eval mode a student is left alone, so that its validation is what stock nnU-Net predicts; a teacher is always in
    eval mode and frozen, which tells it apart.
    """
    convolution = next((m for m in network.modules() if isinstance(m, (nn.Conv2d, nn.Conv3d))), None)
    memory_format = torch.channels_last_3d if isinstance(convolution, nn.Conv3d) else torch.channels_last
    network.to(memory_format=memory_format)
    plain_forward = network.forward
    is_teacher = not any(p.requires_grad for p in network.parameters())

    @functools.wraps(plain_forward)
    def forward(data: Tensor) -> Tensor | list[Tensor]:
        if not (network.training or is_teacher):
            return plain_forward(data)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = plain_forward(data.contiguous(memory_format=memory_format))
        return [head.float() for head in output] if isinstance(output, (list, tuple)) else output.float()

    network.forward = forward
