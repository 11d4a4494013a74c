"""``nnUNetv2_kd predict``: nnUNetv2_predict, faster on a CPU."""

import argparse
from typing import Any

SPEEDS = ("measure", "float32", "float32_channels_last", "bfloat16", "bfloat16_channels_last")


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "predict",
        help="nnUNetv2_predict, faster on a CPU",
        description="Predict as nnUNetv2_predict does, and with -m FOLDER as nnUNetv2_predict_from_modelfolder does: "
        "the same arguments (nnUNetv2_predict -h), the same files. With -device cpu the network computes in the way "
        "that is fastest on this processor. Works with every nnU-Net model.",
        allow_abbrev=False,
    )
    add_cpu_speed(parser)
    parser.set_defaults(run=run, for_nnunet=[])


def add_cpu_speed(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--cpu_speed",
        choices=SPEEDS,
        default="measure",
        metavar="WAY",
        help=f"{', '.join(SPEEDS)}; default: measure, which tries them all first; float32 is nnU-Net's own",
    )


def run(args: argparse.Namespace) -> int:
    from nnunetv2_kd.inference.predict import predict  # needs torch, which `--help` does not

    predict(args.for_nnunet, args.cpu_speed)
    return 0
