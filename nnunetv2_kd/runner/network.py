"""A network in ONNX Runtime or OpenVINO."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import RunnerError, first_line

Array = NDArray[Any]
Network = Callable[[Array], Array]  # (1, C, *patch) to (1, K, *patch), float32; the next call overwrites the result
RUNTIMES = ("onnxruntime", "openvino")


def allowed_threads() -> int:
    """As many threads as this process has processors, but no more than OMP_NUM_THREADS."""
    try:
        count = len(os.sched_getaffinity(0))  # type: ignore[attr-defined, unused-ignore]
    except AttributeError:  # not on Windows and macOS
        count = os.cpu_count() or 1
    limit = os.environ.get("OMP_NUM_THREADS", "")
    return min(count, int(limit)) if limit.isdigit() and int(limit) > 0 else count


def open_network(file: Path, runtime: str, threads: int, shape: tuple[int, ...]) -> Network:
    """Open a network.

    Args:
        file: ``.onnx``; OpenVINO uses the ``.xml`` beside it if there is one.
        runtime: one of `RUNTIMES`.
        threads: the maximum.
        shape: of its output, ``(1, K, *patch)``.

    Raises:
        RunnerError: if the runtime is not installed, or cannot open the file.
    """
    try:
        if runtime == "openvino":
            import openvino

            version = openvino.__version__
            return _openvino(openvino, file, threads)
        import onnxruntime

        version = onnxruntime.__version__
        return _onnx(onnxruntime, file, threads, shape)
    except ImportError as error:
        raise RunnerError(f"{runtime} is not installed. Type: {install_line(file.parents[1], runtime)}") from error
    except Exception as error:  # runtimes may raise anything
        raise RunnerError(
            f"{runtime} {version} cannot open {file.name}: {first_line(error)}\nIts version differs from the one "
            f"with which this folder was made. Type: {install_line(file.parents[1], runtime)}"
        ) from error


def install_line(folder: Path, runtime: str) -> str:
    """The command that installs a runtime's requirements."""
    name = "requirements-openvino.txt" if runtime == "openvino" else "requirements.txt"
    wheels = f"--no-index --find-links {folder / 'wheels'} " if (folder / "wheels").is_dir() else ""
    return f"python -m pip install {wheels}-r {folder / name}"


def _onnx(onnxruntime: Any, file: Path, threads: int, shape: tuple[int, ...]) -> Network:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    (given,), (made,) = session.get_inputs(), session.get_outputs()
    out = np.empty(shape, dtype=np.float32)

    def run(patch: Array) -> Array:
        binding = session.io_binding()  # the output is written directly to its place, without a copy
        binding.bind_input(given.name, "cpu", 0, np.float32, patch.shape, patch.ctypes.data)
        binding.bind_output(made.name, "cpu", 0, np.float32, out.shape, out.ctypes.data)
        session.run_with_iobinding(binding)
        return out

    return run


def _openvino(openvino: Any, file: Path, threads: int) -> Network:
    options = {
        "INFERENCE_PRECISION_HINT": "f32",  # its own default is bfloat16 if the processor supports it
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "ENABLE_CPU_PINNING": False,
    }
    converted = file.with_suffix(".xml")
    core = openvino.Core()
    network = core.read_model(converted if converted.is_file() else file)
    request = core.compile_model(network, "CPU", options).create_infer_request()

    def run(patch: Array) -> Array:
        found: Array = request.infer({0: patch}, share_inputs=True, share_outputs=True)[0]
        return found

    return run
