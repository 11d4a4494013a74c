"""The cost of a distillation step above its floor: a plain student step plus one forward pass of the teacher.

For every recipe in configs/ (and any given with --recipe), the time of a distillation step is divided by the sum of a
plain student step and a teacher's forward pass, all taking turns within one run; the result is the median of these
ratios. Memory is the peak of a process that only does such steps, above that of one that only does plain steps. It is
compared with what a teacher needs by itself: its weights and the peak of its activations in a forward pass.

    python benchmarks/step.py                        # the hippocampus configuration, on the CPU
    python benchmarks/step.py --size large --device cuda
    python benchmarks/step.py --device cuda --compile --recipe configs/region.yaml

With --compile, the student, nnU-Net's Dice, the teacher and the terms are compiled, as in a training on a GPU; the
floor's teacher is not.
"""

import argparse
import copy
import json
import statistics
from pathlib import Path
from typing import Any

import torch
import yaml
from measuring import Step, high_water_mark, in_its_own_process, in_turn, reset_high_water_mark
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from nnunetv2_kd.distillation import Distillation
from nnunetv2_kd.methods.registry import read_methods
from nnunetv2_kd.networks.cpu_mode import set_mode
from nnunetv2_kd.record import TeacherRecord
from nnunetv2_kd.regions import Labels
from nnunetv2_kd.teachers.running import RunningTeacher
from nnunetv2_kd.teachers.teacher import TeacherOutput

CONFIGS = Path(__file__).parents[1] / "configs"
UNET = "dynamic_network_architectures.architectures.unet."
SIZES: dict[str, dict[str, Any]] = {
    "hippocampus": {
        "patch": (40, 56, 40),
        "batch": 9,
        "classes": 3,
        "teacher": ("PlainConvUNet", [32, 64, 128, 256]),
        "student": [16, 32, 64, 128],
    },
    "large": {
        "patch": (128, 128, 128),
        "batch": 2,
        "classes": 3,
        "teacher": ("ResidualEncoderUNet", [32, 64, 128, 256, 320, 320]),
        "student": [16, 32, 64, 128, 160, 160],
    },
    "tiny": {
        "patch": (16, 16, 16),
        "batch": 2,
        "classes": 3,
        "teacher": ("PlainConvUNet", [8, 16, 32]),
        "student": [4, 8, 16],
    },
}
BLOCKS = (1, 3, 4, 6, 6, 6)  # of nnU-Net's residual encoders


def network(architecture: str, features: list[int], classes: int) -> nn.Module:
    stages = len(features)
    residual = architecture == "ResidualEncoderUNet"
    kwargs = {
        "n_stages": stages,
        "features_per_stage": features,
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": [[3, 3, 3]] * stages,
        "strides": [[1, 1, 1]] + [[2, 2, 2]] * (stages - 1),
        "n_blocks_per_stage" if residual else "n_conv_per_stage": list(BLOCKS[:stages]) if residual else [2] * stages,
        "n_conv_per_stage_decoder": [1 if residual else 2] * (stages - 1),
        "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    imports = ["conv_op", "norm_op", "nonlin"]
    return get_network_from_plans(UNET + architecture, kwargs, imports, 1, classes, deep_supervision=True)


class Bench:
    """One student and one teacher on random data: the three kinds of steps."""

    def __init__(self, size: dict[str, Any], device: str, bfloat16: bool, compiled: bool = False) -> None:
        torch.manual_seed(0)
        self.device, self.compiled = device, compiled
        self.classes = size["classes"]
        self.student = network("PlainConvUNet", size["student"], self.classes).to(device)
        self.teacher = RunningTeacher(
            network(*size["teacher"], self.classes).to(device),
            TeacherRecord("", "0", "", "", "", 0, 0, 0),
            [True] * (len(size["teacher"][1]) - 1),
        )
        if bfloat16:
            set_mode(self.student, "bfloat16_channels_last", in_training_only=True)
            set_mode(self.teacher.network, "bfloat16_channels_last")
        self.optimizer = torch.optim.SGD(self.student.parameters(), 1e-3, momentum=0.99, nesterov=True)
        self.data = torch.randn(size["batch"], 1, *size["patch"], device=device)
        heads = len(size["student"]) - 1
        self.targets = [self._blocks(size["batch"], [side // 2**h for side in size["patch"]]) for h in range(heads)]
        weights = [1 / 2**h for h in range(heads)]
        weights[-1] = 0
        dice = {"batch_dice": False, "smooth": 1e-5, "do_bg": False, "ddp": False}
        plain = DC_and_CE_loss(dice, {}, weight_ce=1, weight_dice=1, dice_class=MemoryEfficientSoftDiceLoss)
        self.running = self.student
        if compiled:
            self.running, plain.dc = torch.compile(self.student), torch.compile(plain.dc)
        self.plain_loss = DeepSupervisionWrapper(plain, [w / sum(weights) for w in weights])

    def _blocks(self, batch: int, size: list[int]) -> Tensor:
        """Labels in slabs instead of noise, because organs are connected."""
        rows = torch.arange(size[0], device=self.device) * self.classes // size[0]
        return rows.view(1, 1, -1, 1, 1).expand(batch, 1, *size).contiguous().float()

    def autocast(self) -> Any:
        return torch.autocast("cuda", enabled=self.device == "cuda")

    def learn(self, loss: nn.Module) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        with self.autocast():
            value = loss(self.running(self.data), self.targets)
        value.backward()
        nn.utils.clip_grad_norm_(self.student.parameters(), 12)
        self.optimizer.step()

    def plain_step(self) -> None:
        self.learn(self.plain_loss)

    def teacher_forward(self) -> TeacherOutput:
        with self.autocast():
            return self.teacher.run(self.data)

    def distillation(self, options: dict[str, Any]) -> Step:
        network = copy.deepcopy(self.teacher.network) if self.compiled else self.teacher.network
        teacher = RunningTeacher(network, self.teacher.record, self.teacher.trained_heads)
        labels = Labels(self.classes, False, None)
        distillation = Distillation(self.student, teacher, read_methods(options), labels, self.plain_loss)
        if self.compiled:
            distillation.compile()
        if teacher.taps is not None:
            teacher.taps.recording = False

        def step() -> None:
            # the other recipes' hooks are on the same networks, but keep nothing unless they record
            if teacher.taps is not None:
                teacher.taps.recording = True
            with self.autocast():
                output = teacher({"data": self.data})
            with distillation.loss.distilling(output):
                self.learn(distillation.loss)
            if teacher.taps is not None:
                teacher.taps.recording = False

        return step


def peak_mib(options: dict[str, Any], size: str, device: str, bfloat16: bool, queue: Any) -> None:
    """Put the peak memory of a few steps of a recipe (plain steps without options) into the queue. Runs in
    its own process."""
    bench = Bench(SIZES[size], device, bfloat16)
    if options:
        step = bench.distillation(options)
    else:
        step = bench.plain_step
        del bench.teacher
    step()
    step()
    queue.put(high_water_mark(device))


def teacher_mib(size: str, device: str, bfloat16: bool, queue: Any) -> None:
    """Put the memory of a teacher's weights plus the peak of its activations in a forward pass into the queue. Runs in
    its own process."""
    bench = Bench(SIZES[size], device, bfloat16)
    weights = sum(p.numel() * p.element_size() for p in bench.teacher.network.parameters()) / 2**20
    with torch.no_grad(), bench.autocast():
        bench.teacher.run(bench.data[:1])  # libraries load
    before = reset_high_water_mark(device)
    bench.teacher_forward()
    queue.put(weights + high_water_mark(device) - before)


def measure(args: argparse.Namespace, recipes: dict[str, dict[str, Any]]) -> dict[str, Any]:
    bench = Bench(SIZES[args.size], args.device, args.bfloat16, args.compile)
    steps = {name: bench.distillation(options) for name, options in recipes.items()}
    all_steps = {"plain": bench.plain_step, "teacher": bench.teacher_forward, **steps}
    took = in_turn(all_steps, args.rounds, args.warm_up, args.device)
    floors = [plain + teacher for plain, teacher in zip(took["plain"], took["teacher"], strict=True)]
    rows = {
        name: {
            "ms": 1000 * statistics.median(took[name]),
            "over_floor": statistics.median(t / floor for t, floor in zip(took[name], floors, strict=True)),
            "over_plain": statistics.median(t / plain for t, plain in zip(took[name], took["plain"], strict=True)),
        }
        for name in steps
    }
    memory = {}
    if not args.no_memory:
        own = (args.size, args.device, args.bfloat16)
        plain_mib = in_its_own_process(peak_mib, {}, *own)
        memory = {"plain_mib": plain_mib, "teacher_mib": in_its_own_process(teacher_mib, *own)}
        for name, options in recipes.items():
            rows[name]["mib_over_plain"] = in_its_own_process(peak_mib, options, *own) - plain_mib
    return {
        "size": args.size,
        "device": args.device,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "bfloat16": args.bfloat16,
        "compiled": args.compile,
        "rounds": args.rounds,
        "plain_ms": 1000 * statistics.median(took["plain"]),
        "teacher_ms": 1000 * statistics.median(took["teacher"]),
        **memory,
        "recipes": rows,
    }


def show(result: dict[str, Any]) -> None:
    title = (
        f"{result['size']}, {result['device']}, {result['threads']} threads, bfloat16 {result['bfloat16']}: plain step "
        f"{result['plain_ms']:.0f} ms, teacher's forward pass {result['teacher_ms']:.0f} ms"
    )
    if "teacher_mib" in result:
        title += f"; plain step {result['plain_mib']:.0f} MiB, teacher alone {result['teacher_mib']:.0f} MiB"
    table = Table(title=title)
    for column in ("recipe", "ms", "/ (plain + teacher)", "/ plain", "MiB over plain"):
        table.add_column(column, justify="left" if column == "recipe" else "right")
    for name, row in result["recipes"].items():
        memory = f"{row['mib_over_plain']:.0f}" if "mib_over_plain" in row else "-"
        table.add_row(name, f"{row['ms']:.0f}", f"{row['over_floor']:.3f}", f"{row['over_plain']:.2f}", memory)
    Console(width=140).print(table)


def markdown_of(result: dict[str, Any]) -> str:
    header = ["recipe", "step", "over plain + teacher", "over plain", "memory over plain"]
    lines = [header, ["---"] * len(header)]
    for name, row in result["recipes"].items():
        memory = f"{row['mib_over_plain']:.0f} MiB" if "mib_over_plain" in row else "-"
        lines.append(
            [f"`{name}`", f"{row['ms']:.0f} ms", f"{row['over_floor']:.2f}", f"{row['over_plain']:.2f}", memory]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def read_recipes(chosen: list[Path]) -> dict[str, dict[str, Any]]:
    """The terms of every recipe that has any; recipes with several teachers are measured with one."""
    read = {file.stem: yaml.safe_load(file.read_text()) for file in chosen or sorted(CONFIGS.glob("*.yaml"))}
    return {name: options["terms"] for name, options in read.items() if "terms" in options}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="hippocampus")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--bfloat16", action="store_true", help="as the option cpu_bfloat16 does")
    parser.add_argument("--compile", action="store_true", help="times only, of one recipe, which needs a compiler")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--warm-up", type=int, default=1, help="rounds before those that count")
    parser.add_argument("--recipe", type=Path, nargs="+", default=[], help="options files; default: all in configs/")
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    parser.add_argument("--json", type=Path, default=None, help="write the numbers here")
    args = parser.parse_args()
    if args.compile and (len(args.recipe) != 1 or not args.no_memory):
        parser.error("--compile takes a single --recipe, and --no-memory: hooks of others would be compiled along")
    result = measure(args, read_recipes(args.recipe))
    if args.markdown:
        print(markdown_of(result))
    else:
        show(result)
    if args.json is not None:
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
