"""Run a command on one of the GPUs that CUDA_VISIBLE_DEVICES names, one that no other command started here has.

nnU-Net always trains on the first visible GPU, so that two jobs of one machine would share it. Where at most one GPU is
named, as clusters do, the command runs as it is.
"""

import fcntl
import os
import sys
import tempfile
import time
from pathlib import Path


def main() -> None:
    gpus = [gpu.strip() for gpu in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu.strip()]
    if len(gpus) > 1:
        os.environ["CUDA_VISIBLE_DEVICES"] = wait_for_one(gpus)
    os.execvp(sys.argv[1], sys.argv[1:])


def wait_for_one(gpus: list[str]) -> str:
    """The lock outlives this function and ``exec``, and ends with the command, however that ends."""
    while True:
        for gpu in gpus:
            name = f"nnunetv2_kd_{os.getuid()}_gpu_{gpu.replace('/', '_')}.lock"
            lock = os.open(Path(tempfile.gettempdir()) / name, os.O_RDWR | os.O_CREAT, 0o600)
            os.set_inheritable(lock, True)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(lock)
            else:
                return gpu
        time.sleep(2)


if __name__ == "__main__":
    main()
