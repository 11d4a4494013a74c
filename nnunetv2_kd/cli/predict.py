"""``nnUNetv2_kd predict``: nnUNetv2_predict, faster on a CPU."""

import argparse

from nnunetv2_kd.inference.predict import HowToCompute, predict


def run(args: argparse.Namespace) -> int:
    predict(args.for_nnunet, HowToCompute(args.runtime, args.precision, args.cpu_speed))
    return 0


def about_interruption(_: argparse.Namespace) -> str:
    return "The same command predicts all images again; a segmentation that was being written may be truncated."
