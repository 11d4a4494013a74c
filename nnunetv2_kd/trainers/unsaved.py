"""The state since the last checkpoint, so that a training that ends early loses no complete epoch."""

from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunetv2_kd.nnunet.files import write_atomically

LATEST = "checkpoint_latest.pth"


class UnsavedEpochs:
    """Keeps in memory the state at the end of every epoch that nnU-Net does not save.

    A checkpoint written from it is the one that nnU-Net would have saved there, so a training that continues from it
    gives the same result as one that was never interrupted. If the trainer that ours extends saves checkpoints in its
    own way, only those are kept.

    Args:
        trainer: one of ours.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self._content: bytes | None = None
        base = next(c for c in type(trainer).__mro__ if "save_checkpoint" in vars(c) and not hasattr(c, "distils"))
        self._can = base is nnUNetTrainer

    def remember(self) -> None:
        """Keep the state at the end of an epoch. nnU-Net has already counted up its number."""
        trainer = self._trainer
        done = trainer.current_epoch
        saves = trainer.local_rank == 0 and not trainer.disable_checkpointing
        self._content = None
        if not (self._can and saves) or done % trainer.save_every == 0 or done >= trainer.num_epochs:
            return
        trainer.current_epoch = done - 1
        try:
            self._content = self._serialise()
        finally:
            trainer.current_epoch = done

    def write(self) -> None:
        """Write the state to checkpoint_latest.pth, if there is one that is not saved.

        Raises:
            OSError: if it cannot be written; the file is then unchanged.
        """
        if self._content is not None:
            write_atomically(Path(self._trainer.output_folder) / LATEST, self._content)
            self._content = None

    @contextmanager
    def write_on_failure(self) -> Iterator[None]:
        """However this context fails, write the state of the last complete epoch if possible."""
        try:
            yield
        except BaseException:
            try:
                self.write()
            except OSError as error:
                self._trainer.print_to_log_file(f"The epochs since the last checkpoint could not be saved: {error}")
            raise

    def _serialise(self) -> bytes:
        with BytesIO() as plain, BytesIO() as ours:
            nnUNetTrainer.save_checkpoint(self._trainer, plain)  # torch.save accepts a file name or a stream
            plain.seek(0)
            checkpoint = torch.load(plain, map_location="cpu", weights_only=False)
            torch.save(self._trainer.as_stock(checkpoint, LATEST), ours)
            return ours.getvalue()
