"""Convert a trained network to ONNX and to OpenVINO's own files."""

import io
import logging
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import numpy as np
import torch
from torch import nn

from nnunetv2_kd.errors import KDError

OPSET = 18
ONNX_FILE = "model.onnx"
OPENVINO_FILE = "model.xml"  # and model.bin beside it
INPUT, OUTPUT = "image", "logits"


def write_onnx(network: nn.Module, shape: Sequence[int], folder: Path) -> Path:
    """Write a network as ``model.onnx``, with a fixed input size.

    Args:
        network: on the CPU, in eval mode, with the final head only.
        shape: of its input, ``(B, C, *S)``.

    Raises:
        KDError: if a part of the network cannot be converted.
    """
    file = folder / ONNX_FILE
    try:
        with _quiet():
            torch.onnx.export(
                network,
                (torch.zeros(tuple(shape)),),
                str(file),
                opset_version=OPSET,
                dynamo=False,
                input_names=[INPUT],
                output_names=[OUTPUT],
            )
    except Exception as error:  # torch may raise anything for an operator that ONNX lacks
        first = str(error).strip().splitlines()[0] if str(error).strip() else ""
        raise KDError(
            f"{type(network).__name__} cannot be converted to ONNX: {type(error).__name__}: {first}\nPredict in "
            "PyTorch: --runtime torch. Export for nnU-Net: --format nnunet"
        ) from error
    return file


def write_openvino(onnx_file: Path, folder: Path, fp16: bool = False) -> Path:
    """Write an ONNX file as OpenVINO's ``model.xml`` and ``model.bin``.

    Args:
        fp16: store the weights in half precision, at half the size. This does not set the precision of computation.
    """
    import openvino

    file = folder / OPENVINO_FILE
    openvino.save_model(openvino.Core().read_model(onnx_file), file, compress_to_fp16=fp16)
    return file


def write_int8(onnx_file: Path, patches: Iterable[np.ndarray], folder: Path) -> Path:
    """Quantise a network to 8 bits and write it as OpenVINO's files.

    Static post-training quantisation: weights per channel, activations per tensor by their ranges on the patches
    (NNCF's mixed preset: weights symmetric, activations asymmetric).

    Args:
        onnx_file: the network in float32.
        patches: preprocessed, ``(1, C, *S)`` float32 each.
    """
    import nncf
    import openvino

    found = list(patches)
    with _quiet():
        nncf.set_log_level(logging.ERROR)
        model = openvino.Core().read_model(onnx_file)
        quantised = nncf.quantize(
            model,
            nncf.Dataset(found),
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(found),
        )
    file = folder / OPENVINO_FILE
    openvino.save_model(quantised, file, compress_to_fp16=False)
    return file


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the converters' notes to developers."""
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
