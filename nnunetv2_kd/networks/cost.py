"""What a network of a plans file costs: parameters, FLOPs, activation memory. Nothing is computed: the network is built
on torch's meta device, which knows shapes only."""

from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from nnunetv2_kd.networks.build import build_on_meta
from nnunetv2_kd.nnunet.model_files import refuse_unexpected_content


@dataclass(frozen=True)
class Cost:
    """Size of one network.

    Attributes:
        params: number of parameters.
        flops: floating-point operations of one forward pass of one patch, a multiply-add counted as two.
        activation_bytes: memory of all convolutions' outputs for one patch in float32, as nnU-Net's planner counts it;
            0 if the network cannot compute it.
    """

    params: int
    flops: int
    activation_bytes: int


def count_params(network: nn.Module) -> int:
    """Number of parameters, counting shared ones once."""
    return sum(p.numel() for p in network.parameters())


def network_cost(
    plans: dict[str, Any], configuration: str, dataset_json: dict[str, Any], trainer_name: str | None = None
) -> Cost:
    """Cost, for one patch, of the network that a configuration of the plans describes; or of the network that a trainer
    of that name builds, if it is another one.

    Raises:
        KDError: if the plans name code that must not run, or describe no network that works.
    """
    network: Any = build_on_meta(plans, configuration, dataset_json, trainer_name)
    with refuse_unexpected_content(f"the network of {configuration} in the plans"):
        return _cost(network, plans, configuration, dataset_json)


def _cost(network: Any, plans: dict[str, Any], configuration: str, dataset_json: dict[str, Any]) -> Cost:
    manager = PlansManager(deepcopy(plans))
    config = manager.get_configuration(configuration)
    patch = torch.empty(
        (1, determine_num_input_channels(manager, config, dataset_json), *config.patch_size), device="meta"
    )
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(patch)
    try:
        feature_map_size = int(network.compute_conv_feature_map_size(tuple(config.patch_size)))
    except (NotImplementedError, AttributeError):  # a transformer
        feature_map_size = 0
    return Cost(count_params(network), int(counter.get_total_flops()), 4 * feature_map_size)
