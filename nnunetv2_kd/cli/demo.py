"""``nnUNetv2_kd demo``: distil a student on bundled real data in minutes."""

import argparse

from nnunetv2_kd.demo.report import measure, picture, sentences, table_of
from nnunetv2_kd.demo.run import run_demo
from nnunetv2_kd.terminal import plain_console


def run(args: argparse.Namespace) -> int:
    console = plain_console()
    output = args.o.absolute()
    run_demo(output, args.seed, console, args.train_teacher, args.smoke)
    rows = measure(output)
    console.print(table_of(rows))
    for sentence in sentences(rows):
        console.print(sentence, highlight=False)
    console.print(f"Picture: {picture(output, rows)}", soft_wrap=True)
    console.print(f"Models, predictions and numbers: {output}", soft_wrap=True)
    return 0
