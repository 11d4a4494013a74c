"""nnU-Net's own prediction, faster on a CPU: its command, its predictor and its files, another way to compute."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from nnunetv2.inference import predict_from_raw_data
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels

from nnunetv2_kd.errors import KDError, listing
from nnunetv2_kd.inference.device import check_device, prediction_threads
from nnunetv2_kd.inference.images import cases_in
from nnunetv2_kd.networks import cpu_mode


def predict(arguments: Sequence[str], wanted: cpu_mode.CpuSpeed) -> None:
    """What ``nnUNetv2_predict`` does, or with ``-m`` ``nnUNetv2_predict_from_modelfolder``.

    Args:
        arguments: theirs.
        wanted: how the network computes where ``-device cpu`` is among them.

    Raises:
        KDError: where the processor lacks what is wanted, or the device, the model or the images are not there.
    """
    cpu_mode.check_here(wanted)
    is_folder = "-m" in arguments
    command = "nnUNetv2_predict_from_modelfolder" if is_folder else "nnUNetv2_predict"
    with _as_command(command, arguments, type("Predictor", (FastPredictor,), {"wanted": wanted})):
        if is_folder:
            predict_from_raw_data.predict_entry_point_modelfolder()
        else:
            predict_from_raw_data.predict_entry_point()


class FastPredictor(nnUNetPredictor):
    """Tells early what is missing, and lets the network compute in another way on a CPU."""

    wanted: ClassVar[cpu_mode.CpuSpeed] = "measure"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        check_device(self.device)

    def initialize_from_trained_model_folder(
        self, model_training_output_dir: str, use_folds: Any, checkpoint_name: str = "checkpoint_final.pth"
    ) -> None:
        check_model(Path(model_training_output_dir), use_folds or (), checkpoint_name)
        super().initialize_from_trained_model_folder(model_training_output_dir, use_folds, checkpoint_name)
        chosen = speed_up(self, self.wanted)
        if chosen is not None:
            print(f"nnunetv2_kd: the network computes in {chosen}")

    def _manage_input_and_output_lists(self, source: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(source, str):
            cases_in(Path(source), self.dataset_json["file_ending"])
        return super()._manage_input_and_output_lists(source, *args, **kwargs)


def speed_up(predictor: nnUNetPredictor, wanted: cpu_mode.CpuSpeed) -> cpu_mode.ChosenMode | None:
    """Let a predictor's network compute in the way that is wanted; on another device than a CPU as nnU-Net does, and
    None."""
    if predictor.device.type != "cpu":
        return None
    plans, configuration = predictor.plans_manager, predictor.configuration_manager
    channels = determine_num_input_channels(plans, configuration, predictor.dataset_json)
    threads = torch.get_num_threads()
    torch.set_num_threads(prediction_threads())
    try:
        return cpu_mode.choose_mode(predictor.network, wanted, (1, channels, *configuration.patch_size))
    finally:
        torch.set_num_threads(threads)


def check_model(folder: Path, folds: Sequence[int | str], checkpoint_name: str) -> None:
    """The model's files are there.

    Raises:
        KDError: names those that are not, and the folds that are.
    """
    files = [folder / "plans.json", folder / "dataset.json"]
    files += [folder / f"fold_{fold}" / checkpoint_name for fold in folds]
    missing = [f"{file} does not exist" for file in files if not file.is_file()]
    if missing:
        trained = sorted(file.parent.name.removeprefix("fold_") for file in folder.glob(f"fold_*/{checkpoint_name}"))
        found = f"Folds with {checkpoint_name}: {', '.join(trained)}. Name them: -f {' '.join(trained)}"
        raise KDError(listing("The model is not complete:", missing) + (f"\n{found}" if trained else ""))


@contextmanager
def _as_command(name: str, arguments: Sequence[str], predictor: type) -> Iterator[None]:
    """Inside, nnU-Net's entry points read these arguments and predict with this predictor."""
    before = sys.argv, predict_from_raw_data.nnUNetPredictor
    sys.argv, predict_from_raw_data.nnUNetPredictor = [name, *arguments], predictor
    try:
        yield
    finally:
        sys.argv, predict_from_raw_data.nnUNetPredictor = before
