"""``nnUNetv2_kd benchmark``: how much faster and smaller a student is than its teacher, on this device."""

import argparse

import torch

from nnunetv2_kd.benchmark.run import BenchmarkRequest, benchmark
from nnunetv2_kd.benchmark.table import print_benchmark, to_json, to_markdown
from nnunetv2_kd.nnunet.files import check_writable, write_text
from nnunetv2_kd.terminal import plain_console


def run(args: argparse.Namespace) -> int:
    console = plain_console()
    if args.json is not None:
        check_writable(args.json.absolute().parent, "--json")
    request = BenchmarkRequest(
        device=torch.device(args.device),
        folders=args.m,
        dataset=args.d,
        configurations=args.c,
        plans=args.p,
        trainers=args.tr,
        fold=args.f,
        images=args.i,
        cases=args.cases,
        repeats=args.repeats,
        cpu_speeds=args.cpu_speed,
        runtimes=args.runtime,
        precisions=args.precision,
    )
    found = benchmark(request, lambda line: plain_console(stderr=True).print(line, style="dim", markup=False))
    if args.json is not None:
        write_text(args.json, to_json(found) + "\n")
    if args.markdown:
        print(to_markdown(found), end="")
    else:
        print_benchmark(found, console)
    return 0
