"""How strongly the distillation terms count over the course of a training."""

import math

from nnunetv2_kd.config import Schedule


def factor_at(progress: float, schedule: Schedule) -> float:
    """Factor on all distillation terms.

    Args:
        progress: share of the training that is done, in [0, 1].
        schedule: linear rise from 0 over ``warmup``, 1 until ``decay_from``, then half a cosine to ``final``.

    Returns:
        At least 0; 1 on the plateau.

    >>> schedule = Schedule(warmup=0.1, decay_from=0.5, final=0.0)
    >>> [round(factor_at(progress, schedule), 2) for progress in (0.05, 0.3, 0.75, 1.0)]
    [0.5, 1.0, 0.5, 0.0]
    """
    if progress < schedule.warmup:
        return progress / schedule.warmup
    if progress <= schedule.decay_from or schedule.decay_from == 1:
        return 1.0
    fallen = (progress - schedule.decay_from) / (1 - schedule.decay_from)
    return schedule.final + (1 - schedule.final) * 0.5 * (1 + math.cos(math.pi * min(fallen, 1.0)))
