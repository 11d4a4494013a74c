"""Read a checkpoint without running what it may carry."""

import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nnunetv2_kd.errors import KDError

KEYS = ("network_weights", "init_args", "trainer_name")  # all that nnU-Net needs to predict


def allowed_globals() -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """Plain number types that nnU-Net's logging leaves in a checkpoint, under NumPy 1's and 2's names."""
    scalar = np.float64(0).__reduce__()[0]
    names = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
    dtypes = [type(np.dtype(t)) for t in (np.float64, np.float32, np.float16, np.int64, np.int32, np.bool_)]
    return [np.dtype, *dtypes, *((scalar, name) for name in names)]


def read_checkpoint(file: Path, trust_pickle: bool = False) -> dict[str, Any]:
    """A checkpoint that nnU-Net wrote, on the CPU.

    Args:
        file: the checkpoint.
        trust_pickle: allow any Python object in it. Reading it then runs whatever code it carries.

    Raises:
        KDError: where the file cannot be read, is cut short, is no checkpoint, or carries more than plain data.
    """
    # `from None` below: torch's own message advises to load without the check
    try:
        with torch.serialization.safe_globals(allowed_globals()):
            checkpoint = torch.load(file, map_location="cpu", weights_only=not trust_pickle)
    except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
        raise KDError(f"The checkpoint {file} cannot be read: {error.strerror or error}.") from None
    except pickle.UnpicklingError as error:
        raise KDError(_refused(file, str(error))) from None
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise KDError(_broken(file, f"{type(error).__name__}")) from None
    if not isinstance(checkpoint, dict):
        raise KDError(f"{file} is not an nnU-Net checkpoint: it holds a {type(checkpoint).__name__}.")
    missing = [key for key in KEYS if key not in checkpoint]
    if missing:
        raise KDError(f"{file} is not an nnU-Net checkpoint: it lacks {', '.join(missing)}.")
    return checkpoint


def _refused(file: Path, reason: str) -> str:
    if "GLOBAL" not in reason and "Unsupported" not in reason:
        return _broken(file, "not a pickle")
    named = re.search(r"GLOBAL ([\w.]+)", reason)
    return (
        f"The checkpoint {file} carries more than plain data ({named[1] if named else 'an unknown object'}) and was "
        "not loaded, because reading it could run code. If you trust where it comes from, set 'teacher: {trust_pickle: "
        "true}' in the options file."
    )


def _broken(file: Path, kind: str) -> str:
    size = file.stat().st_size
    return (
        f"The checkpoint {file} ({size} bytes) cannot be read as a checkpoint ({kind}): it is cut short, empty, or "
        "something else. Copy it again, or train the teacher again."
    )
