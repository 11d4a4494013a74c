"""``nnUNetv2_kd predict``: nnUNetv2_predict, faster on a CPU."""

import argparse

from nnunetv2_kd.inference.predict import predict


def run(args: argparse.Namespace) -> int:
    predict(args.for_nnunet, args.cpu_speed)
    return 0
