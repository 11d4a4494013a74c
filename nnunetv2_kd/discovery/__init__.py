"""How nnU-Net finds our trainers without the user setting anything.

nnU-Net looks for the class that ``-tr`` names in its own package and then in the folders of the environment variable
``nnUNet_extTrainer``. `register` adds our folder, which holds one stub module, to that variable. It is the target of
an entry point in the group ``torch.backends``, which torch (>= 2.5) calls at ``import torch`` in every process.

An exception in this module would break ``import torch`` in the user's whole environment. So it imports nothing that
could fail, and does nothing that can raise.
"""

import os
from pathlib import Path

VARIABLE = "nnUNet_extTrainer"
OPT_OUT = "nnUNet_kd_discovery"
STUB_FOLDER = str(Path(__file__).parent / "stub")


def is_opted_out() -> bool:
    """Whether the user switched automatic discovery off with ``nnUNet_kd_discovery=0``."""
    return os.environ.get(OPT_OUT, "1").lower() in ("0", "false", "f", "no", "off")


def is_registered() -> bool:
    """Whether nnU-Net will look into our stub folder in this process."""
    return STUB_FOLDER in os.environ.get(VARIABLE, "").split(os.pathsep)


def register() -> None:
    """Append the stub folder to ``nnUNet_extTrainer``, unless it is already there or the user opted out."""
    if is_opted_out() or is_registered():
        return
    present = os.environ.get(VARIABLE, "")
    os.environ[VARIABLE] = f"{present}{os.pathsep}{STUB_FOLDER}" if present else STUB_FOLDER
