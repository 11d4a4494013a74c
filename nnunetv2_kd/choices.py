"""Values that both options and flags choose from, in a module that imports nothing else, so that help comes at once."""

from typing import Literal, get_args

CpuMode = Literal["float32", "float32_channels_last", "bfloat16", "bfloat16_channels_last"]
CpuSpeed = Literal["measure", "float32", "float32_channels_last", "bfloat16", "bfloat16_channels_last"]

CPU_MODES: tuple[CpuMode, ...] = get_args(CpuMode)
CPU_SPEEDS: tuple[CpuSpeed, ...] = get_args(CpuSpeed)
DEVICES = ("cuda", "cpu", "mps")
