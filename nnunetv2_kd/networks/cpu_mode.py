"""How a network computes on the CPU: in float32 or bfloat16, with the channels first or last in memory.

nnU-Net computes in float32 with channels first, because bfloat16 is slow on processors without instructions for it. On
processors with them, bfloat16 about halves the time. Channels last speeds up some networks and slows down others, so
the fastest mode is measured for each network.
"""

import copy
import functools
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from nnunetv2_kd.choices import CPU_MODES, CpuMode, CpuSpeed
from nnunetv2_kd.errors import KDError
from nnunetv2_kd.networks.build import plain_network

STOCK: CpuMode = "float32"

ROUNDS = 4
SECONDS = 30.0  # limit on measuring; a large network gets fewer rounds, which suffice to see what it saves
WORTH_IT = 0.95  # a mode must take at most this share of float32's time: less gain is noise, and float32 is more exact


@dataclass(frozen=True)
class ChosenMode:
    """The mode that a network computes in from now on, and the reason in words."""

    mode: CpuMode
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.mode} ({self.reason})" if self.reason else self.mode


@dataclass(frozen=True)
class MeasuredModes:
    """The fastest mode for a network, and the milliseconds of one pass in every mode."""

    mode: CpuMode
    ms: dict[CpuMode, float]

    def __str__(self) -> str:
        return ", ".join(f"{mode} {ms:.1f}" for mode, ms in self.ms.items()) + " ms"


def cpu_has_bfloat16() -> bool:
    """Whether this processor has instructions for bfloat16; without them it is slower than float32."""
    return any(getattr(torch.cpu, f"_is_{name}_supported", lambda: False)() for name in ("avx512_bf16", "amx_tile"))


def processor_name() -> str:
    """The processor's name, such as ``Intel(R) Xeon(R) Platinum 8481C``, or whatever Python knows about it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def modes_here() -> tuple[CpuMode, ...]:
    """The modes that are worth trying on this processor."""
    return tuple(mode for mode in CPU_MODES if cpu_has_bfloat16() or not is_bfloat16(mode))


def is_bfloat16(mode: str) -> bool:
    return mode.startswith("bfloat16")


def check_here(wanted: CpuSpeed) -> None:
    """Check that the processor can compute in the user's mode.

    Raises:
        KDError: if it lacks the instructions.
    """
    if is_bfloat16(wanted) and not cpu_has_bfloat16():
        raise KDError(
            f"{wanted} needs a processor with bfloat16 instructions (AVX512-BF16 or AMX), which this one lacks: it "
            f"would be slower than float32. Choose another: {', '.join(('measure', *modes_here()))}."
        )


def set_mode(network: nn.Module, mode: CpuMode, in_training_only: bool = False) -> None:
    """Let a network compute in this mode on the CPU from now on. Its weights stay float32, its outputs are float32.

    Args:
        network: may be compiled or wrapped in DDP. Call it once.
        mode: ``float32`` leaves the network as it is.
        in_training_only: compute in float32 in eval mode, so that a validation predicts the same as stock nnU-Net.
    """
    if mode == STOCK:
        return
    network = plain_network(network)
    memory_format = torch.contiguous_format
    if mode.endswith("channels_last"):
        convolution = next((m for m in network.modules() if isinstance(m, (nn.Conv2d, nn.Conv3d))), None)
        memory_format = torch.channels_last_3d if isinstance(convolution, nn.Conv3d) else torch.channels_last
        network.to(memory_format=memory_format)
    plain_forward = network.forward

    @functools.wraps(plain_forward)
    def forward(data: Tensor) -> Tensor | list[Tensor]:
        if in_training_only and not network.training:
            return plain_forward(data)
        # autocast applies per thread, so it is entered here and not by the caller
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=is_bfloat16(mode)):
            output = plain_forward(data.contiguous(memory_format=memory_format))
        return [head.float() for head in output] if isinstance(output, (list, tuple)) else output.float()

    network.forward = forward


def measure(network: nn.Module, shape: Sequence[int], trained: bool = False) -> MeasuredModes:
    """Time a network in every mode that this processor supports. The network and the random state stay unchanged.

    Args:
        network: on the CPU; copies of it are run.
        shape: of its input, ``(B, C, *S)``.
        trained: whether to time a training step's forward and backward pass, instead of a forward pass alone.
    """
    took: dict[CpuMode, list[float]] = {mode: [] for mode in modes_here()}
    with torch.random.fork_rng(devices=[]):
        data = torch.randn(tuple(shape))
        copies = {mode: copy.deepcopy(plain_network(network)).train(trained) for mode in took}
        for mode, copied in copies.items():
            set_mode(copied, mode)
        started = time.perf_counter()
        # in turns, so that other load on the machine affects all modes alike
        for _ in range(ROUNDS):
            for mode, copied in copies.items():
                took[mode].append(_milliseconds(copied, data, trained))
            if time.perf_counter() - started > SECONDS:
                break
    # the first round is a warm-up; it counts only if the network is too slow for a second
    ms = {mode: min(times[1:] or times) for mode, times in took.items()}
    fastest = min(ms, key=lambda mode: ms[mode])
    return MeasuredModes(fastest if ms[fastest] < WORTH_IT * ms[STOCK] else STOCK, ms)


def choose_mode(network: nn.Module, wanted: CpuSpeed, shape: Sequence[int], trained: bool = False) -> ChosenMode:
    """Set a network to the mode that the user wants, or to the fastest one.

    Args:
        network: on the CPU.
        wanted: a mode, or ``measure`` for the fastest.
        shape: of its input, ``(B, C, *S)``, to measure with.
        trained: whether the network is being trained; in eval mode it then computes as stock nnU-Net does, see
            `set_mode`.

    Raises:
        KDError: if this processor lacks the instructions for the wanted mode.
    """
    check_here(wanted)
    if wanted != "measure":
        set_mode(network, wanted, in_training_only=trained)
        return ChosenMode(wanted)
    measured = measure(network, shape, trained)
    set_mode(network, measured.mode, in_training_only=trained)
    what = "forward and backward" if trained else "forward"
    missing = "" if cpu_has_bfloat16() else "; no bfloat16 instructions here"
    return ChosenMode(measured.mode, f"measured, {what}: {measured}{missing}")


def _milliseconds(network: nn.Module, data: Tensor, trained: bool) -> float:
    network.zero_grad(set_to_none=True)
    started = time.perf_counter()
    with torch.inference_mode(not trained):
        output = network(data)
        if trained:
            heads = output if isinstance(output, (list, tuple)) else [output]
            torch.stack([head.square().mean() for head in heads]).sum().backward()
    return 1000 * (time.perf_counter() - started)
