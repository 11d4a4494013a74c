"""A converted network that is called like a torch network."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nnunetv2_kd.choices import Precision, Runtime

Session = Callable[[np.ndarray], np.ndarray]  # its next call may overwrite what it returned
OPENVINO_PRECISION: dict[Precision, str] = {"f32": "f32", "bf16": "bf16", "int8": "f32"}


def open_session(file: Path, runtime: Runtime, precision: Precision, threads: int) -> Session:
    """A converted network, ready to run.

    Args:
        file: ``model.onnx`` or ``model.xml``.
        runtime: ``openvino`` or ``onnx``.
        precision: of the computation; always set, because OpenVINO by itself uses bfloat16 if the processor has it.
        threads: maximum number of threads.
    """
    return (_openvino if runtime == "openvino" else _onnx)(file, precision, threads)


def _openvino(file: Path, precision: Precision, threads: int) -> Session:
    import openvino

    options = {
        "INFERENCE_PRECISION_HINT": OPENVINO_PRECISION[precision],
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "ENABLE_CPU_PINNING": False,  # other programs may be pinned to the same cores
    }
    core = openvino.Core()
    request = core.compile_model(core.read_model(file), "CPU", options).create_infer_request()

    return lambda data: request.infer({0: data}, share_inputs=True, share_outputs=True)[0]


def _onnx(file: Path, precision: Precision, threads: int) -> Session:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda data: session.run(None, {name: data})[0]


class SessionNetwork(nn.Module):
    """Takes the place of the network in nnU-Net's predictor: it holds the sessions of all folds, one of them in use.

    nnU-Net loads a fold's weights with ``load_state_dict``. Here, it loads that fold's `weights_of`, which selects its
    session.
    """

    def __init__(self, sessions: Sequence[Session]) -> None:
        super().__init__()
        self._sessions = list(sessions)
        self._current = self._sessions[0]

    @staticmethod
    def weights_of(number: int) -> dict[str, Any]:
        """What takes the place of the weights of fold ``number`` in ``predictor.list_of_parameters``."""
        return {"session": number}

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        self._current = self._sessions[state_dict["session"]]

    def forward(self, data: Tensor) -> Tensor:
        """``(1, C, *S)`` float32 to logits ``(1, K, *S)`` float32."""
        return self.forward_shared(data).clone()

    def forward_shared(self, data: Tensor) -> Tensor:
        """Like `forward`, but the next call overwrites the result."""
        return torch.from_numpy(self._current(np.ascontiguousarray(data.numpy())))
