"""Run one of nnU-Net's commands with no more threads than this job may take. By itself nnU-Net takes every core that
the machine has; trainers of nnunetv2_kd hold themselves back, stock ones are held here."""

import multiprocessing
import runpy
import shutil
import sys

from nnunetv2_kd.networks.threads import allowed_threads


def main() -> None:
    allowed = allowed_threads()
    multiprocessing.cpu_count = lambda: allowed  # what nnU-Net asks
    sys.argv = sys.argv[1:]
    runpy.run_path(shutil.which(sys.argv[0]) or sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
