"""Check that nnUNetv2_train's ``-pretrained_weights`` fit the student."""

from pathlib import Path
from typing import Any

from torch import nn

from nnunetv2_kd.config import StudentOptions
from nnunetv2_kd.errors import KDError
from nnunetv2_kd.nnunet.checkpoint import read_checkpoint

NOT_TRANSFERRED = ".seg_layers."  # by nnU-Net


def check_pretrained(file: Path, network: nn.Module, student: StudentOptions) -> None:
    """Check that nnU-Net can copy all weights of a checkpoint, except the segmentation layers, into the student.

    Args:
        file: the file that ``-pretrained_weights`` names.
        network: the student.
        student: its options.

    Raises:
        KDError: if it cannot (says what to do instead), if the file cannot be read, or if ``student.start`` asks for
            other initial weights.
    """
    if student.start is not None:
        raise KDError(
            "-pretrained_weights and the option student.start both give the initial weights. Leave out one of them."
        )
    weights = read_checkpoint(file)["network_weights"]  # nnU-Net is about to read it without looking at what it carries
    differing = [
        f"{name} is {_shape(weights.get(name))} in the file and {_shape(tensor)} in the student"
        for name, tensor in (*network.named_parameters(), *network.named_buffers())  # each once
        if NOT_TRANSFERRED not in name and _shape(weights.get(name)) != _shape(tensor)
    ]
    if differing:
        raise KDError(
            f"-pretrained_weights {file} has a network of another size than this student: {differing[0]}, and "
            f"{len(differing) - 1} others differ.\n"
            "To start the student from a selection of its teacher's channels, leave out -pretrained_weights, and put "
            f"this into the options file that nnUNet_kd_config names: {_options(file)}\n"
            "To copy the weights as they are, if the file was trained with the plans that -p names, train a student of "
            "the same size: student: {width: 1}"
        )


def _shape(tensor: Any) -> str:
    return "missing" if tensor is None else "x".join(map(str, tensor.shape)) or "a number"


def _options(file: Path) -> str:
    """The options that start the student from this model, and name it as the teacher if the file is in
    a model folder."""
    folder, fold = file.absolute().parents[1], file.parent.name.removeprefix("fold_")
    start = "student: {start: teacher}"
    if not (folder / "plans.json").is_file() or not (fold == "all" or fold.isdigit()):
        return start
    return f"{start} and teacher: {{folder: {folder}, fold: {fold}, checkpoint: {file.name}}}"
