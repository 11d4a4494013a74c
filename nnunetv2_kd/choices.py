"""Values that both options and flags choose from. The module imports nothing else, so that --help is fast."""

from typing import Literal, get_args

CpuMode = Literal["float32", "float32_channels_last", "bfloat16", "bfloat16_channels_last"]
CpuSpeed = Literal["measure", "float32", "float32_channels_last", "bfloat16", "bfloat16_channels_last"]

Runtime = Literal["torch", "openvino", "onnx"]
RuntimeChoice = Literal["measure", "torch", "openvino", "onnx"]
Precision = Literal["f32", "bf16", "int8"]
ExportFormat = Literal["nnunet", "onnx", "openvino", "portable"]
ExportPrecision = Literal["f32", "bf16", "fp16", "int8"]

RUNTIMES: tuple[Runtime, ...] = get_args(Runtime)
RUNTIME_CHOICES: tuple[RuntimeChoice, ...] = get_args(RuntimeChoice)
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
EXPORT_FORMATS: tuple[ExportFormat, ...] = get_args(ExportFormat)
EXPORT_PRECISIONS: tuple[ExportPrecision, ...] = get_args(ExportPrecision)
CPU_MODES: tuple[CpuMode, ...] = get_args(CpuMode)
CPU_SPEEDS: tuple[CpuSpeed, ...] = get_args(CpuSpeed)
DEVICES = ("cuda", "cpu", "mps")
