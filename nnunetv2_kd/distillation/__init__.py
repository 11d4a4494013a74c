"""Combine a student, its teacher and the methods into one loss, for any training loop.

::

    distillation = Distillation(student, teacher, terms, labels, segmentation_loss)
    optimizer = torch.optim.AdamW([*student.parameters(), *distillation.trained_parts.parameters()])
    for batch in batches:  # nnU-Net's: {"data": ..., "target": ...}
        output_t = teacher(batch)
        with distillation.loss.distilling(output_t):
            total = distillation.loss(student(batch["data"]), batch["target"])
        total.backward()
"""

from nnunetv2_kd.distillation.assembly import Distillation
from nnunetv2_kd.distillation.loss import DistillationLoss

__all__ = ["Distillation", "DistillationLoss"]
