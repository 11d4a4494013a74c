"""Build networks as nnU-Net does, and unwrap them."""

import inspect
from contextlib import redirect_stdout
from copy import deepcopy
from io import StringIO
from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from nnunetv2_kd.nnunet.architecture import check_architecture
from nnunetv2_kd.nnunet.model_files import refuse_unexpected_content


def find_trainer(name: str) -> type[nnUNetTrainer] | None:
    """The trainer class of that name, found as nnU-Net finds it; None if it is not installed."""
    with redirect_stdout(StringIO()):  # nnU-Net prints where it looks
        try:
            found: type[nnUNetTrainer] = recursive_find_trainer_class_by_name(name)
        except (RuntimeError, AssertionError, TypeError):  # the name does not exist, or is not a trainer class
            return None
    return found


def configuration_of(
    plans: dict[str, Any], configuration: str, trust: bool = False
) -> tuple[PlansManager, ConfigurationManager]:
    """nnU-Net's managers for plans and one of their configurations, after checking that its network may be built.

    Args:
        trust: see `check_architecture`.

    Raises:
        KDError: if the plans are not as nnU-Net writes them, or name code that must not run.
    """
    with refuse_unexpected_content(f"the plans of {configuration}"):
        manager = PlansManager(deepcopy(plans))
        config = manager.get_configuration(configuration)
        check_architecture(config.configuration.get("architecture"), f"the plans of {configuration}", trust)
    return manager, config


def build_network(
    plans: dict[str, Any],
    configuration: str,
    dataset_json: dict[str, Any],
    trainer_name: str,
    deep_supervision: bool,
    trust: bool = False,
) -> nn.Module:
    """The network that nnU-Net would build to predict with this model, with its deep supervision heads if wanted.

    If the trainer is not installed, it is the network that the plans describe: most trainers build no other.

    Raises:
        KDError: if the plans name code that must not run (unless ``trust``), or no network can be built from them.
    """
    trainer_class = find_trainer(trainer_name) or nnUNetTrainer
    manager, config = configuration_of(plans, configuration, trust)
    with refuse_unexpected_content(f"the network of {configuration} in the plans"):
        network = _build(trainer_class, manager, config, dataset_json, deep_supervision)
        if not isinstance(network, nn.Module):
            raise TypeError(f"its class makes a {type(network).__name__}, which is not a network")
    return network


def _build(
    trainer_class: type[nnUNetTrainer],
    manager: PlansManager,
    config: ConfigurationManager,
    dataset_json: dict[str, Any],
    deep_supervision: bool,
) -> nn.Module:
    described: tuple[Any, ...] = (manager, config)
    if "plans_manager" not in inspect.signature(trainer_class.build_network_architecture).parameters:
        # the older signature, which nnU-Net 2.8 still supports
        described = (
            config.network_arch_class_name,
            config.network_arch_init_kwargs,
            config.network_arch_init_kwargs_req_import,
        )
    return trainer_class.build_network_architecture(
        *described,
        determine_num_input_channels(manager, config, dataset_json),
        manager.get_label_manager(dataset_json).num_segmentation_heads,
        deep_supervision,
    )


def build_on_meta(
    plans: dict[str, Any],
    configuration: str,
    dataset_json: dict[str, Any],
    trainer_name: str | None = None,
    trust: bool = False,
) -> nn.Module:
    """The network of a configuration as nnU-Net would build it for inference, on the meta device (without memory).

    Args:
        trainer_name: of a trainer that may build another network than the plans describe; None: nnU-Net's own.
        trust: see `check_architecture`.

    Raises:
        KDError: as `build_network`.
    """
    trainer = find_trainer(trainer_name) if trainer_name is not None else None
    if trainer is not None and trainer.build_network_architecture is not nnUNetTrainer.build_network_architecture:
        with torch.device("meta"):
            return build_network(plans, configuration, dataset_json, trainer.__name__, False, trust)
    manager, config = configuration_of(plans, configuration, trust)
    with refuse_unexpected_content(f"the network of {configuration} in the plans"), torch.device("meta"):
        return get_network_from_plans(
            config.network_arch_class_name,
            config.network_arch_init_kwargs,
            config.network_arch_init_kwargs_req_import,
            determine_num_input_channels(manager, config, dataset_json),
            manager.get_label_manager(dataset_json).num_segmentation_heads,
            allow_init=False,
            deep_supervision=False,
        )


def plain_network(network: nn.Module) -> nn.Module:
    """The network inside DDP and torch.compile."""
    if isinstance(network, nn.parallel.DistributedDataParallel):
        network = network.module
    if isinstance(network, torch._dynamo.OptimizedModule):
        network = network._orig_mod
    return network
