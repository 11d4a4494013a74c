"""The epochs since the last checkpoint, so that a training that is ended early keeps them."""

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
    """Keeps the state at the end of every epoch that nnU-Net does not save, in memory.

    What is saved of it is the same as nnU-Net would have saved there: a training that goes on from it is the one that
    was never cut off. A trainer whose base saves checkpoints in a way of its own keeps what that saves, and no more.

    Args:
        trainer: one of ours.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self._content: bytes | None = None
        base = next(c for c in type(trainer).__mro__ if "save_checkpoint" in vars(c) and not hasattr(c, "distils"))
        self._can = base is nnUNetTrainer

    def remember(self) -> None:
        """After an epoch, whose number nnU-Net has counted up already."""
        trainer = self._trainer
        done = trainer.current_epoch
        saves = trainer.local_rank == 0 and not trainer.disable_checkpointing
        self._content = None
        if not (self._can and saves) or done % trainer.save_every == 0 or done >= trainer.num_epochs:
            return
        trainer.current_epoch = done - 1
        try:
            self._content = self._serialised()
        finally:
            trainer.current_epoch = done

    def write(self) -> None:
        """Into checkpoint_latest.pth, where there is anything that is not saved.

        Raises:
            OSError: where that is not possible; the file is as before then.
        """
        if self._content is not None:
            write_atomically(Path(self._trainer.output_folder) / LATEST, self._content)
            self._content = None

    @contextmanager
    def write_on_failure(self) -> Iterator[None]:
        """Whatever ends what is inside, the epochs that were trained are kept where they can be written."""
        try:
            yield
        except BaseException:
            try:
                self.write()
            except OSError as error:
                self._trainer.print_to_log_file(f"The epochs since the last checkpoint could not be saved: {error}")
            raise

    def _serialised(self) -> bytes:
        with BytesIO() as plain, BytesIO() as ours:
            nnUNetTrainer.save_checkpoint(self._trainer, plain)  # torch.save takes either
            plain.seek(0)
            checkpoint = torch.load(plain, map_location="cpu", weights_only=False)
            torch.save(self._trainer.as_stock(checkpoint, LATEST), ours)
            return ours.getvalue()
