"""Two gloo processes that train together on the CPU, as with nnU-Net's DDP on GPUs: first a student of the running
teacher, then one of the stored teacher."""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def work(rank: int, root: str, port: int) -> None:
    import nnunetv2.training.nnUNetTrainer.nnUNetTrainer as stock
    from torch.nn.parallel import DistributedDataParallel

    from nnunetv2_kd.trainers import nnUNetTrainerRegionKD
    from tests.conftest import World
    from tests.trainers.helpers import make_trainer

    class OnCPU(nnUNetTrainerRegionKD):
        """nnU-Net takes cuda:RANK for granted under DDP."""

        def initialize(self) -> None:
            self.device, self.grad_scaler = torch.device("cpu"), None
            super().initialize()

    class OnCPUStored(OnCPU):
        pass

    stock.DDP = lambda network, device_ids: DistributedDataParallel(network)
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    terms = {"voxel_kl": {}, "region_kl": {}, "importance_map": {}, "region_affinity": {}, "fitnet": {}}
    few = {"terms": {name: terms[name] for name in ("voxel_kl", "region_affinity")}, "stored_teacher": "fold_0"}
    for student, options in ((OnCPU, {"terms": terms}), (OnCPUStored, few)):
        trainer = make_trainer(student, World(Path(root)), **options)
        trainer.run_training()
        weights = torch.cat([p.detach().flatten() for p in trainer.network.parameters()])
        trained = trainer.distillation.trained_parts.parameters()
        adapters = torch.cat([torch.zeros(1), *(p.detach().flatten() for p in trained)])
        kept = {"weights": weights, "adapters": adapters, "rows": len(trainer._history.rows)}
        torch.save(kept, Path(root) / f"{student.__name__}_rank{rank}.pt")
        dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    mp.spawn(work, args=(sys.argv[1], int(sys.argv[2])), nprocs=2)
