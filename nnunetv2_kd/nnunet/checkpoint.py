"""Read a checkpoint without running code that it may contain, and only if it is complete."""

import pickle
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nnunetv2_kd.errors import KDError, listing
from nnunetv2_kd.nnunet.model_files import printable
from nnunetv2_kd.nnunet.trust import HOW, is_trusted

COPY = "Copy it again, or train it again."
KEYS = ("network_weights", "init_args", "trainer_name")  # all that nnU-Net needs to predict


class CarriesObjectsError(KDError):
    """A complete checkpoint that holds more than plain data."""


def allowed_globals() -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """Number types that nnU-Net's logging stores in a checkpoint, under their names in NumPy 1 and 2."""
    dtypes = [type(np.dtype(t)) for t in (np.float64, np.float32, np.float16, np.int64, np.int32, np.bool_)]
    return [np.dtype, *dtypes, *(_scalar_of(module) for module in ("numpy.core.multiarray", "numpy._core.multiarray"))]


def _scalar_of(module: str) -> Callable[..., Any]:
    """NumPy's function that makes a number, under the name that it has in a checkpoint. torch 2.5 goes by a function's
    own name and takes no other beside it."""
    made = np.float64(0).__reduce__()[0]

    def scalar(*arguments: Any) -> Any:
        return made(*arguments)

    scalar.__module__, scalar.__qualname__ = module, "scalar"
    return scalar


def read_checkpoint(file: Path, trust: bool = False, mend: str = COPY) -> dict[str, Any]:
    """Read a checkpoint that nnU-Net wrote, onto the CPU.

    Args:
        file: the checkpoint.
        trust: allow any Python object in it; see `trust`. Reading it then runs any code that it contains.
        mend: what the user can do about a damaged file.

    Raises:
        KDError: if the file cannot be read, is truncated or damaged, is not nnU-Net's, or contains more than plain
            data.
    """
    # `from None` below, because torch's own message advises to load without the check
    try:
        _check_archive(file)
        with torch.serialization.safe_globals(allowed_globals()):
            checkpoint = torch.load(file, map_location="cpu", weights_only=not is_trusted(trust))
    except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
        raise KDError(f"The checkpoint {file} cannot be read: {error.strerror or error}.") from None
    except pickle.UnpicklingError as error:
        raise _refusal(file, str(error), mend) from None
    except KDError as error:
        raise KDError(_damaged_message(file, str(error), mend)) from None
    except Exception as error:  # any error, because torch's reader may meet any bytes
        raise KDError(_damaged_message(file, type(error).__name__, mend)) from None
    if not isinstance(checkpoint, dict):
        raise KDError(f"{file} is not an nnU-Net checkpoint: it holds a {type(checkpoint).__name__}.")
    missing = [key for key in KEYS if key not in checkpoint]
    if missing:
        raise KDError(f"{file} is not an nnU-Net checkpoint: it lacks {', '.join(missing)}.")
    problems = list(_content_problems(checkpoint))
    if problems:
        raise KDError(f"{listing(f'{file} is not as nnU-Net writes a checkpoint:', problems)}\n{mend}")
    return checkpoint


def _check_archive(file: Path) -> None:
    """Check every part of a checkpoint in torch's zip format against the zip's checksum, which torch itself ignores.
    Files in torch's older format are not zips, and are not checked.

    Raises:
        KDError: says what is wrong, without the file's name.
    """
    if not zipfile.is_zipfile(file):
        return
    with zipfile.ZipFile(file) as archive:
        if any(part.compress_type != zipfile.ZIP_STORED for part in archive.infolist()):
            raise KDError("compressed, which torch's files are not")
        damaged = archive.testzip()
    if damaged is not None:
        raise KDError(f"damaged: the checksum of {printable(damaged)} in it differs")


def _content_problems(checkpoint: dict[str, Any]) -> Iterator[str]:
    """What is wrong with the parts of a checkpoint that are always read."""
    weights, arguments = checkpoint["network_weights"], checkpoint["init_args"]
    if not isinstance(weights, dict) or not weights:
        yield f"network_weights: expected tensors by name, found {type(weights).__name__}"
    elif not all(isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in weights.items()):
        yield "network_weights: contains something other than tensors by name"
    if not isinstance(arguments, dict) or not isinstance(arguments.get("configuration"), str):
        yield "init_args: expected the trainer's arguments with the name of a configuration"
    elif not isinstance(arguments.get("plans", {}), dict):
        yield f"init_args: plans: expected keys with values, found {type(arguments['plans']).__name__}"
    if not isinstance(checkpoint["trainer_name"], str):
        yield f"trainer_name: expected a name, found {type(checkpoint['trainer_name']).__name__}"
    epoch = checkpoint.get("current_epoch", 0)
    if isinstance(epoch, bool) or not isinstance(epoch, (int, np.integer)):
        yield f"current_epoch: expected a whole number, found {printable(epoch)}"
    if not isinstance(checkpoint.get("optimizer_state", {}), (dict, type(None))):
        yield f"optimizer_state: expected keys with values, found {type(checkpoint['optimizer_state']).__name__}"
    if not isinstance(checkpoint.get("kd", {}), (dict, type(None))):
        yield f"kd: expected a record of the training, found {type(checkpoint['kd']).__name__}"
    axes = checkpoint.get("inference_allowed_mirroring_axes")
    if axes is not None and not (isinstance(axes, (list, tuple)) and all(axis in (0, 1, 2) for axis in axes)):
        yield f"inference_allowed_mirroring_axes: expected axes, found {printable(axes)}"


def _refusal(file: Path, reason: str, mend: str) -> KDError:
    if "GLOBAL" not in reason and "Unsupported" not in reason:
        return KDError(_damaged_message(file, "not a pickle", mend))
    named = re.search(r"GLOBAL ([\w.]+)", reason)
    return CarriesObjectsError(
        f"The checkpoint {file} carries more than plain data ({named[1] if named else 'an unknown object'}) and was "
        f"not loaded, because reading it could run code. {HOW}"
    )


def _damaged_message(file: Path, kind: str, mend: str) -> str:
    size = file.stat().st_size if file.exists() else 0
    return (
        f"The checkpoint {file} ({size} bytes) cannot be read as a checkpoint ({kind}): it is truncated, empty, or "
        f"not a checkpoint. {mend}"
    )
