"""Read ``model.json``, and check that the folder is unchanged."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import RunnerError

MODEL_FILE, SUMS_FILE = "model.json", "SHA256SUMS"
VERSION = 1  # version of model.json's format


@dataclass(frozen=True)
class Normalization:
    """How the intensities of one channel are normalised.

    Attributes:
        scheme: nnU-Net's class name.
        inside_mask: for ZScoreNormalization: use only voxels that are not 0.
        statistics: of the training cases' foreground: mean, std, percentile_00_5, percentile_99_5.
    """

    scheme: str
    inside_mask: bool
    statistics: dict[str, float]


@dataclass(frozen=True)
class Resampling:
    """nnU-Net's ``resample_data_or_seg_to_shape``, or ``no_resampling_hack``.

    Attributes:
        function: its name.
        order, order_z: of the splines; ``order_z`` is for the axis of thick slices, if it is resampled separately.
        force_separate_z: whether it is; None: if the spacing is anisotropic.
        threshold: spacing is anisotropic if the largest is more than this many times the smallest.
    """

    function: str
    order: int
    order_z: int
    force_separate_z: bool | None
    threshold: float


@dataclass(frozen=True)
class Configuration:
    """One of the models that predict together.

    Attributes:
        name: nnU-Net's configuration, such as ``3d_fullres``.
        transpose_forward, transpose_backward: order of the axes in the network, and back.
        spacing: of the network's input, in mm; two numbers for a 2d network.
        patch_size: in voxels, two or three numbers.
        normalization: one per channel.
        resample_image, resample_labels, resample_logits: the rules.
        mirroring_axes: of a patch.
        previous_stage: for a cascade, the configuration whose segmentation is added as channels; None: no cascade.
        networks: files, one per fold.
    """

    name: str
    transpose_forward: list[int]
    transpose_backward: list[int]
    spacing: list[float]
    patch_size: list[int]
    normalization: list[Normalization]
    resample_image: Resampling
    resample_labels: Resampling
    resample_logits: Resampling
    mirroring_axes: list[int]
    previous_stage: str | None
    networks: list[str]


@dataclass(frozen=True)
class Model:
    """All that a prediction needs.

    Attributes:
        folder: the exported folder.
        name: of the dataset.
        labels: the value of each label by name; for a region, several values.
        channels: names, in order.
        reader: name of nnU-Net's reader.
        file_ending: of images and segmentations.
        foreground_labels: values other than 0.
        region_values: for overlapping regions, the value that each one writes, in the order of writing; None: no
            regions.
        heads: channels of a network's output.
        configurations: the models that predict together.
        postprocessing: labels, or lists of labels; of each in turn, only the largest component is kept.
        codes: DICOM codes by label name: value, scheme, meaning.
        orientation: the directions of the axes in the files of the training images, such as ``RAS``; None: not known.
    """

    folder: Path
    name: str
    labels: dict[str, Any]
    channels: list[str]
    reader: str
    file_ending: str
    foreground_labels: list[int]
    region_values: list[int] | None
    heads: int
    configurations: list[Configuration]
    postprocessing: list[Any]
    codes: dict[str, list[str]]
    orientation: str | None

    @property
    def needs_previous(self) -> bool:
        return any(configuration.previous_stage is not None for configuration in self.configurations)


def read_model(folder: Path) -> Model:
    """Read an exported folder, after comparing all of its files with ``SHA256SUMS``.

    Raises:
        RunnerError: if a file is missing or was changed.
    """
    check_files(folder)
    content = json.loads((folder / MODEL_FILE).read_text(encoding="utf-8"))
    if content.get("version") != VERSION:
        raise RunnerError(f"{MODEL_FILE} has version {content.get('version')}, this runner reads {VERSION}.")
    return model_of(folder, content)


def model_of(folder: Path, content: dict[str, Any]) -> Model:
    """The content of ``model.json`` as types."""
    configurations = [
        Configuration(
            **{
                **entry,
                "normalization": [Normalization(**channel) for channel in entry["normalization"]],
                **{key: Resampling(**entry[key]) for key in entry if key.startswith("resample_")},
            }
        )
        for entry in content["configurations"]
    ]
    known = {key: value for key, value in content.items() if key not in ("version", "made_by", "configurations")}
    return Model(folder=folder, configurations=configurations, **known)


def check_files(folder: Path) -> None:
    """Check that every file exists and is unchanged.

    Raises:
        RunnerError: names the files that are not.
    """
    sums = folder / SUMS_FILE
    if not sums.is_file():
        raise RunnerError(f"{folder} lacks {SUMS_FILE}: it is not an exported folder, or is incomplete. Copy it again.")
    problems = []
    for line in sums.read_text(encoding="utf-8").splitlines():
        digest, _, name = line.partition("  ")
        file = folder / name
        if not file.is_file():
            problems.append(f"  - {name} is missing")
        elif sha256(file) != digest:
            problems.append(f"  - {name} was changed since the export (its SHA-256 differs)")
    if problems:
        raise RunnerError("\n".join([f"{folder} is damaged. Copy it again, or export it again:", *problems]))


def sha256(file: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()
