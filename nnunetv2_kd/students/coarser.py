"""Plans for a student that sees fewer voxels: nnU-Net's own planner, given a coarser spacing."""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import nnunetv2
import numpy as np
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.preprocessing.resampling.default_resampling import compute_new_shape
from nnunetv2.utilities.find_class_by_name import recursive_find_python_class
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_kd.errors import KDError
from nnunetv2_kd.nnunet.datasets import dataset_id
from nnunetv2_kd.nnunet.files import read_json
from nnunetv2_kd.nnunet.plans import Plans

TAKEN = ("patch_size", "batch_size", "median_image_size_in_voxels", "architecture")
LEAST_STAGES = 2
PROCESSES = "nnUNet_n_proc_DA"


def coarser_spacing(spacing: Sequence[float], times: float) -> list[float]:
    """A spacing that is ``times`` coarser on average over the axes, and as isotropic as possible (ours).

    A voxel's volume grows by ``times ** dimensions``. The voxels are cubes, unless an axis of the data is coarser than
    such a cube: that axis stays as it is, and the others make up for it. Isotropic, because nnU-Net's authors found
    this better than coarsening every axis by the same factor (FLARE24, task 2).

    Args:
        spacing: of the data, in mm.
        times: above 1.

    Returns:
        The spacing in mm, along no axis finer than the data.

    Raises:
        KDError: if ``times`` is not above 1.

    >>> coarser_spacing([1.0, 1.0, 1.0], 2)
    [2.0, 2.0, 2.0]
    >>> coarser_spacing([5.0, 1.0, 1.0], 2)
    [5.0, 2.8284, 2.8284]
    """
    if not 1 < times < math.inf:
        raise KDError(f"--coarser must be above 1, such as --coarser 2; found {times:g}.")
    volume = math.prod(spacing) * times ** len(spacing)
    kept: set[int] = set()
    while True:
        rest = [axis for axis in range(len(spacing)) if axis not in kept]
        side = (volume / math.prod(spacing[axis] for axis in kept)) ** (1 / len(rest))
        coarser = [axis for axis in rest if spacing[axis] > side]
        if not coarser:
            return [float(spacing[axis]) if axis in kept else round(side, 4) for axis in range(len(spacing))]
        kept.update(coarser)


def check_spacing(before: Sequence[float], wanted: Sequence[float]) -> list[float]:
    """Check the user's spacing, and return it.

    Raises:
        KDError: if it has the wrong number of axes, is not a spacing, or does not give fewer voxels.
    """
    shown = " ".join(f"{side:g}" for side in wanted)
    if len(wanted) != len(before):
        raise KDError(f"--spacing {shown}: expected {len(before)} numbers, like the teacher's {list(before)}.")
    if not all(0 < side < math.inf for side in wanted):
        raise KDError(f"--spacing {shown}: expected numbers above 0, in mm.")
    if math.prod(wanted) <= math.prod(before):
        raise KDError(
            f"--spacing {shown} gives no fewer voxels than the teacher's {list(before)}: expected a coarser one."
        )
    return [float(side) for side in wanted]


def coarser_plans(plans: Plans, spacings: Mapping[str, Sequence[float]], name: str, dataset: Path) -> Plans:
    """Plans of the given configurations at another spacing; nnU-Net plans everything that follows from it.

    Args:
        plans: the teacher's, as read from its file; not changed.
        spacings: by configuration, in mm, axes in the order of the plans.
        name: of the student's plans, for the folder of its preprocessed data.
        dataset: the dataset's folder under ``nnUNet_preprocessed``, with the fingerprint.

    Returns:
        Plans with these configurations only, still under the name of the teacher's plans.

    Raises:
        KDError: if nnU-Net's fingerprint is missing, or images become too small for a network.
    """
    file = dataset / "dataset_fingerprint.json"
    if not file.is_file():
        raise KDError(f"{file} does not exist. Make it: nnUNetv2_extract_fingerprint -d {dataset_id(dataset.name)}")
    fingerprint, manager = read_json(file), PlansManager(deepcopy(plans))
    made = deepcopy(plans)
    made["configurations"] = {}
    for configuration, spacing in spacings.items():
        before = manager.get_configuration(configuration).configuration
        planned = _plan_configuration(plans, before, spacing, fingerprint, dataset)
        identifier = f"{name}_{configuration}_{'x'.join(f'{side:g}' for side in spacing)}"
        made["configurations"][configuration] = deepcopy(before) | {
            "data_identifier": identifier,
            "spacing": list(spacing),
            **{key: _plain(planned[key]) for key in TAKEN},
        }
    return made


def voxels_of(configuration: Mapping[str, Any]) -> int:
    """Voxels of a case of median size (in 2d: of a slice)."""
    return math.prod(round(side) for side in configuration["median_image_size_in_voxels"])


def _plan_configuration(
    plans: Plans, before: Mapping[str, Any], spacing: Sequence[float], fingerprint: Mapping[str, Any], dataset: Path
) -> dict[str, Any]:
    """The configuration that the plans' own planner makes for a spacing."""
    order = list(plans["transpose_forward"])
    shapes = [
        compute_new_shape(np.array(shape)[order], given, [*given[: 3 - len(spacing)], *spacing])
        for shape, given in (
            (shape, [float(given[axis]) for axis in order])
            for shape, given in zip(fingerprint["shapes_after_crop"], fingerprint["spacings"], strict=True)
        )
    ]
    median = np.median(shapes, axis=0)
    planner = _planner(plans)(dataset.name, preprocessor_name=before["preprocessor_name"])
    voxels = float(np.prod(median, dtype=np.float64) * planner.dataset_json["numTraining"])
    sizes = median[3 - len(spacing) :]
    with _one_process():
        planned: dict[str, Any] = planner.get_plans_for_configuration(np.array(spacing), sizes, "", voxels, {})
    if len(planned["architecture"]["arch_kwargs"]["strides"]) < LEAST_STAGES:
        raise KDError(
            f"At {' x '.join(f'{side:g}' for side in spacing)} mm a case of median size has only "
            f"{' x '.join(f'{side:g}' for side in sizes)} voxels: too few for a network. Ask for a finer spacing."
        )
    return planned


@contextmanager
def _one_process() -> Iterator[None]:
    """nnU-Net's planner reads its number of processes from a variable that a training may set to 0, and then fails."""
    before = os.environ.get(PROCESSES)
    os.environ[PROCESSES] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[PROCESSES]
        else:
            os.environ[PROCESSES] = before


def _planner(plans: Plans) -> type[ExperimentPlanner]:
    """The nnU-Net planner class that made the plans."""
    name = plans.get("experiment_planner_used", "ExperimentPlanner")
    folder = str(Path(nnunetv2.__path__[0]) / "experiment_planning")
    found: type[ExperimentPlanner] | None = recursive_find_python_class(folder, name, "nnunetv2.experiment_planning")
    if found is None:
        raise KDError(f"The plans {plans['plans_name']} were made by {name}, which the installed nnU-Net lacks.")
    return found


def _plain(value: Any) -> Any:
    """Convert to types that JSON can store."""
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [_plain(entry) for entry in value]
    return value.item() if isinstance(value, np.generic) else value
