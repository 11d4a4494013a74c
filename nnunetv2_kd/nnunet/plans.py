"""Read nnU-Net's plans files and their configurations."""

from copy import deepcopy
from pathlib import Path
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_kd.errors import KDError
from nnunetv2_kd.nnunet.model_files import read_plans_file

Plans = dict[str, Any]


def read_plans(dataset: Path, name: str) -> Plans:
    """The plans of that name of a preprocessed dataset.

    Args:
        dataset: its folder under ``nnUNet_preprocessed``.

    Raises:
        KDError: if they are missing (names those that exist), or are not JSON.
    """
    file = dataset / f"{name}.json"
    if not file.is_file():
        names = sorted(f.stem for f in dataset.glob("*Plans*.json"))
        raise KDError(f"{file} does not exist. Plans in this folder: {', '.join(names) or 'none'}.")
    plans: Plans = read_plans_file(file)
    return plans


def planned_configurations(plans: Plans) -> list[str]:
    """The configurations of the plans that have a network."""
    manager = PlansManager(deepcopy(plans))
    names = manager.available_configurations
    return [name for name in names if "architecture" in manager.get_configuration(name).configuration]


def check_configuration(plans: Plans, configuration: str) -> None:
    """Check that the plans have a configuration.

    Raises:
        KDError: if they do not; names those that they have.
    """
    if configuration not in plans["configurations"]:
        raise KDError(
            f"The plans {plans['plans_name']} have no configuration {configuration!r}, only "
            f"{', '.join(plans['configurations'])}."
        )


def resolved_configuration(plans: Plans, configuration: str) -> dict[str, Any]:
    """A configuration with everything that it inherits."""
    found: dict[str, Any] = PlansManager(deepcopy(plans)).get_configuration(configuration).configuration
    return found
