"""The terms' trained parts: optimised, kept equal on all workers, and saved for resuming, but never exported."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

State = dict[str, Any]


def start_training_parts(
    adapters: nn.Module, optimizer: torch.optim.Optimizer, scheduler: Any, resumed: State, is_ddp: bool
) -> bool:
    """Start to train the adapters, or continue if the training is resumed.

    Args:
        resumed: what the checkpoint keeps for resuming; empty if nothing is resumed.
        is_ddp: whether there are other workers.

    Returns:
        Whether the adapters start from scratch.
    """
    if not list(adapters.parameters()):
        return False
    add_to_optimizer(adapters, optimizer, scheduler)
    kept = "adapters" in resumed
    if kept:
        adapters.load_state_dict(resumed["adapters"])
        restore_optimizer_state(adapters, optimizer, resumed["adapters_optimizer"])
    if is_ddp:
        synchronise_workers(adapters)
    return not kept


def add_to_optimizer(adapters: nn.Module, optimizer: torch.optim.Optimizer, scheduler: Any) -> None:
    """Train the adapters with the network's optimizer and learning rate, in a parameter group of their own."""
    optimizer.add_param_group({"params": list(adapters.parameters()), "lr": optimizer.param_groups[0]["lr"]})
    scheduler.base_lrs = [*scheduler.base_lrs, scheduler.base_lrs[0]]  # torch's schedulers expect one per group


def synchronise_workers(adapters: nn.Module) -> None:
    """Do for the adapters what DDP does for the network: equal initial weights, and averaged gradients."""

    def average(parameter: Tensor) -> None:
        if parameter.grad is not None:
            dist.all_reduce(parameter.grad)
            parameter.grad /= dist.get_world_size()

    for parameter in adapters.parameters():
        dist.broadcast(parameter.data, src=0)
        parameter.register_post_accumulate_grad_hook(average)


def split_optimizer_state(state: State, added: int) -> tuple[State, list[State]]:
    """Split an optimizer's state into that of nnU-Net's own trainer and that of the parameters in the last group.

    Args:
        state: of an optimizer whose last group has ``added`` parameters; 0: there is no such group.
    """
    if added == 0:
        return state, []
    groups = state["param_groups"]
    last = groups[-1]["params"]
    plain = {
        **state,
        "state": {index: value for index, value in state["state"].items() if index not in last},
        "param_groups": groups[:-1],
    }
    return plain, [state["state"].get(index, {}) for index in last]


def restore_optimizer_state(adapters: nn.Module, optimizer: torch.optim.Optimizer, states: list[State]) -> None:
    """Restore the adapters' optimizer state from `split_optimizer_state`."""
    for parameter, state in zip(adapters.parameters(), states, strict=True):
        optimizer.state[parameter] = {
            # AdamW counts its steps on the CPU
            key: value.to(parameter.device) if isinstance(value, Tensor) and key != "step" else value
            for key, value in state.items()
        }
