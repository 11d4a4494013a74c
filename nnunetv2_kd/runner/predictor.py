"""An exported model that segments images."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import RunnerError
from .labels import add_probabilities, keep_largest, segmentation, segmentation_from_probabilities
from .model import Configuration, Model
from .network import Network, allowed_threads, open_network
from .preprocessing import Frame, preprocess
from .scratch import Stack
from .sliding_window import Tile, predict_logits

Array = NDArray[Any]
Progress = Callable[[list[Tile]], Iterable[Tile]]


@dataclass
class Profile:
    """Seconds per stage, and the peak memory of the process at the end of each stage, in MB (0 if not known)."""

    seconds: dict[str, float] = field(default_factory=dict)
    peak_mb: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started
            self.peak_mb[name] = peak_memory_mb()


def peak_memory_mb() -> float:
    """The peak memory of this process; 0 if the system does not report it."""
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


class Predictor:
    """Segments images with an exported model.

    Args:
        model: from `model.read_model`.
        runtime: ``onnxruntime`` or ``openvino``.
        threads: the maximum; None: as many as the process may use.
        memory_gb: logits that take more than this are kept in a file.
        scratch: folder of that file.
        mirroring: whether to predict mirrored copies too, as the model was trained to.
        postprocessing: whether to keep only the largest components, if nnU-Net found that this helps.

    Raises:
        RunnerError: if the runtime is not installed or cannot open the networks.
    """

    def __init__(
        self,
        model: Model,
        runtime: str = "onnxruntime",
        threads: int | None = None,
        memory_gb: float = 1.0,
        scratch: Path = Path("."),
        mirroring: bool = True,
        postprocessing: bool = True,
    ) -> None:
        self.model = model
        self._limit, self._scratch = memory_gb * 1e9, scratch
        self._mirroring, self._postprocessing = mirroring, postprocessing
        self._networks: list[list[Network]] = [
            [
                open_network(
                    model.folder / file, runtime, threads or allowed_threads(), (1, model.heads, *part.patch_size)
                )
                for file in part.networks
            ]
            for part in model.configurations
        ]

    def segment(
        self,
        read: Callable[[], tuple[Array, Sequence[float]]],
        previous: Array | None = None,
        profile: Profile | None = None,
        progress: Progress = iter,
        look: Callable[[Stack], None] | None = None,
    ) -> Array:
        """Segment one image.

        Args:
            read: returns the image ``(C, Z, Y, X)`` float32, which is changed, and its spacing, mm along Z, Y, X. It is
                called once per model, so that the image takes no memory while the networks run.
            previous: a cascade's segmentation of the previous stage, ``(Z, Y, X)``.
            profile: records how long each stage took.
            progress: wraps the tiles of every fold.
            look: called with the first model's logits at its own spacing, per class ``(*S)`` float16.

        Returns:
            ``(Z, Y, X)``, uint8 or uint16.
        """
        profile = profile if profile is not None else Profile()
        parts = list(zip(self.model.configurations, self._networks, strict=True))
        if len(parts) == 1:
            (part, networks) = parts[0]
            logits, frame = self._logits(part, networks, read, previous, profile, progress)
            if look is not None:
                look(logits)
            with profile.stage("labels"):
                found = segmentation(logits, self.model, part, frame)
                logits.close()
        else:
            total: Stack | None = None
            for number, (part, networks) in enumerate(parts):
                logits, frame = self._logits(part, networks, read, previous, profile, progress)
                if look is not None and number == 0:
                    look(logits)
                with profile.stage("labels"):
                    if total is None:
                        shape = [frame.shape[axis] for axis in part.transpose_backward]
                        total = Stack(self.model.heads, shape, np.float32, self._limit, self._scratch)
                    add_probabilities(logits, self.model, part, frame, total)
                    logits.close()
            if total is None:
                raise RunnerError("There is no model.")
            with profile.stage("labels"):
                found = segmentation_from_probabilities(total, len(parts), self.model)
                total.close()
        if self._postprocessing and self.model.postprocessing:
            with profile.stage("postprocessing"):
                found = keep_largest(found, self.model.postprocessing)
        return found

    def _logits(
        self,
        part: Configuration,
        networks: Sequence[Network],
        read: Callable[[], tuple[Array, Sequence[float]]],
        previous: Array | None,
        profile: Profile,
        progress: Progress,
    ) -> tuple[Stack, Frame]:
        if part.previous_stage is not None and previous is None:
            raise RunnerError(f"The segmentation of the previous stage, {part.previous_stage}, is missing.")
        with profile.stage("preprocessing"):
            given = previous if part.previous_stage is not None else None
            image, frame = preprocess(*read(), part, given, self.model.foreground_labels)
        with profile.stage("network"):
            axes = part.mirroring_axes if self._mirroring else []
            logits = predict_logits(
                image,
                networks,
                part.patch_size,
                axes,
                lambda shape: Stack(self.model.heads, shape, np.float16, self._limit, self._scratch),
                progress,
            )
        return logits, frame
