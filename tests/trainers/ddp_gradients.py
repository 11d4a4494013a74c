"""Run the trainers' own step on the same four patches in two gloo processes and in one, and compare the gradients."""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

TERMS = {"voxel_kl": {"temperature": 2.0}}
KILLED = 9


def gradients(root: str, rank: int, world_size: int) -> None:
    """The gradients of one step on this process's share of the patches, written to a file."""
    import nnunetv2.training.nnUNetTrainer.nnUNetTrainer as stock
    from torch.nn.parallel import DistributedDataParallel

    from nnunetv2_kd.trainers import nnUNetTrainerKD
    from tests.conftest import World
    from tests.trainers.helpers import make_trainer

    class OnCPU(nnUNetTrainerKD):
        """nnU-Net takes cuda:RANK for granted under DDP."""

        def initialize(self) -> None:
            self.device, self.grad_scaler = torch.device("cpu"), None
            super().initialize()

    stock.DDP = lambda network, device_ids: DistributedDataParallel(network)
    torch.set_num_threads(1)
    trainer = make_trainer(OnCPU, World(Path(root)), terms=TERMS)
    trainer.initialize()
    trainer._start_distillation()
    trainer.optimizer.step = lambda *_: None  # the gradients are looked at
    assert not isinstance(trainer.teacher.network, DistributedDataParallel)
    patches = torch.load(Path(root) / "patches.pt")
    share = slice(rank * 4 // world_size, (rank + 1) * 4 // world_size)
    batch = {"data": patches["data"][share], "target": [y[share] for y in patches["target"]], "keys": ["a"] * 4}
    if rank == 1 and (Path(root) / "kill").exists():
        os._exit(KILLED)
    trainer.train_step(batch)
    # a head without a weight has no gradient alone, and one of 0 under DDP
    found = torch.cat(
        [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in trainer.network.parameters()]
    )
    torch.save(found, Path(root) / f"gradients_{rank}_of_{world_size}.pt")


def work(rank: int, root: str, port: int) -> None:
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=2)
    gradients(root, rank, 2)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    if sys.argv[2] == "alone":
        gradients(sys.argv[1], 0, 1)
    else:
        mp.spawn(work, args=(sys.argv[1], int(sys.argv[2])), nprocs=2)
