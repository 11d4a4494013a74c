"""Stored probabilities on their way through nnU-Net's data loading and augmentation.

They are loaded as additional channels of a case's image, so that nnU-Net crops and pads them with it. For the
transforms they are split off and passed as ``regression_target``, which batchgeneratorsv2 moves in space with the image
and leaves otherwise unchanged. After the transforms they become channels again, so that nnU-Net collates them.
"""

import os
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import torch

from nnunetv2_kd.errors import KDError
from nnunetv2_kd.teachers.stored import quantization


class Stacked:
    """An image and its stored probabilities, read from disk only when sliced; replaces nnU-Net's array on disk.

    Args:
        image: ``(C, *S)``.
        stored: bytes ``(R, *S)``.
    """

    def __init__(self, image: Any, stored: Any) -> None:
        self.image, self.stored = image, stored
        self.shape = (image.shape[0] + stored.shape[0], *image.shape[1:])
        self.ndim = len(self.shape)
        self.dtype = np.dtype(np.float32)

    def __getitem__(self, index: Any) -> np.ndarray:
        """``[:]``, or a slice per dimension with all channels; float32."""
        parts = index if isinstance(index, tuple) else (index,)
        if parts[0] not in (slice(None), Ellipsis):
            raise IndexError(f"expected all channels, got {parts[0]}")
        image = np.asarray(self.image[index], dtype=np.float32)
        return np.concatenate((image, quantization.decode(np.asarray(self.stored[index]))))


class StoredDataset:
    """nnU-Net's dataset, with the stored probabilities appended to the images' channels.

    Args:
        plain: nnU-Net's own dataset.
        store: folder of the store.
    """

    def __init__(self, plain: Any, store: Path) -> None:
        self.plain = plain
        self.store = store
        self.identifiers = plain.identifiers

    def __getitem__(self, identifier: str) -> tuple[Any, ...]:
        return self.load_case(identifier)

    def load_case(self, identifier: str) -> tuple[Any, ...]:
        image, *others = self.plain.load_case(identifier)
        mapped = {} if os.name == "nt" else {"mmap_mode": "r"}  # as nnU-Net opens its own files
        stored = blosc2.open(
            urlpath=str(self.store / f"{identifier}.b2nd"), mode="r", dparams={"nthreads": 1}, **mapped
        )
        return (Stacked(image, stored), *others)


class StoredTransforms:
    """nnU-Net's training transforms, except that the last channels are only moved in space.

    Args:
        transforms: nnU-Net's own.
        channels: how many last channels.
    """

    def __init__(self, transforms: Any, channels: int) -> None:
        self.transforms = transforms
        self.channels = channels

    def __call__(self, **sample: Any) -> dict[str, Any]:
        image = sample.pop("image")
        sample |= {"image": image[: -self.channels], "regression_target": image[-self.channels :]}
        done: dict[str, Any] = self.transforms(**sample)
        moved = done.pop("regression_target", None)
        if moved is None or moved.shape[1:] != done["image"].shape[1:]:
            raise KDError(
                "One of this trainer's augmentations drops the stored probabilities or moves the image without them: "
                "it has no _apply_to_regr_target. Train with the teacher itself, without stored_teacher."
            )
        done["image"] = torch.cat((done["image"], moved))
        return done
