"""nnU-Net's own prediction, faster on a CPU: the same command, arguments and files, but in another runtime."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from nnunetv2.inference import predict_from_raw_data
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.paths import nnUNet_results
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels

from nnunetv2_kd.choices import CpuSpeed, Precision, RuntimeChoice
from nnunetv2_kd.errors import KDError, listing
from nnunetv2_kd.inference.choose import use_runtime
from nnunetv2_kd.inference.device import prediction_threads
from nnunetv2_kd.inference.exported import exported_folds, is_exported, load_exported
from nnunetv2_kd.inference.predictor import FastPredictor
from nnunetv2_kd.inference.runtimes import check_runtime
from nnunetv2_kd.networks import cpu_mode
from nnunetv2_kd.networks.threads import torch_threads
from nnunetv2_kd.nnunet.datasets import trained_dataset
from nnunetv2_kd.nnunet.files import check_writable
from nnunetv2_kd.nnunet.images import (
    SHOWN,
    cases_in,
    channel_files,
    channel_problems,
    file_per_channel,
    reader_of,
    reading_problems,
)
from nnunetv2_kd.nnunet.model_files import read_model_files
from nnunetv2_kd.nnunet.model_folder import ALL, checkpoints_of, fold_name, parse_model_name


@dataclass(frozen=True)
class HowToCompute:
    """How a network should compute on a CPU.

    Attributes:
        runtime, precision: see `runtimes`.
        cpu_speed: instead, one of torch's modes in `cpu_mode`; None if not asked for.
    """

    runtime: RuntimeChoice = "measure"
    precision: Precision = "f32"
    cpu_speed: CpuSpeed | None = None

    def check(self, device: str) -> None:
        """Check that this machine can compute in this way.

        Raises:
            KDError: if it cannot; says what to type.
        """
        if self.cpu_speed is not None:
            cpu_mode.check_here(self.cpu_speed)
            if self.runtime not in ("measure", "torch") or self.precision != "f32":
                raise KDError(
                    f"--cpu_speed {self.cpu_speed} selects PyTorch and its precision. Leave out either it, or "
                    "--runtime and --precision."
                )
            return
        check_runtime(self.runtime, self.precision, device)
        if self.precision == "bf16":
            cpu_mode.check_here("bfloat16")


def predict(arguments: Sequence[str], how: HowToCompute) -> None:
    """Do what ``nnUNetv2_predict`` does; with ``-m``, what ``nnUNetv2_predict_from_modelfolder`` does.

    Args:
        arguments: of these commands.
        how: how the network should compute, if ``-device cpu`` is among the arguments.

    Raises:
        KDError: if the runtime, the device, the model or the images are missing, or the output folder cannot be
            written to; or, after the prediction, if some cases failed.
    """
    known = _parse_known(arguments)
    arguments = list(arguments)
    if known.output is not None:
        check_writable(known.output)
    command = "nnUNetv2_predict"
    if known.model is not None:
        command = "nnUNetv2_predict_from_modelfolder"
        if is_exported(known.model):
            arguments += [] if known.folds else ["-f", *exported_folds(known.model)]
        else:
            how.check(known.device)
    else:
        how.check(known.device)
        if known.dataset is not None:
            trained_dataset(known.dataset)
    strange = [fold for fold in known.folds or () if not fold.isdigit() and fold != ALL]
    if strange:
        raise KDError(f"-f takes fold numbers, or {ALL}; found {' '.join(strange)}.")
    with _as_command(command, arguments, type("Predictor", (CommandPredictor,), {"how": how, "images": known.images})):
        try:
            if known.model is not None:
                predict_from_raw_data.predict_entry_point_modelfolder()
            else:
                predict_from_raw_data.predict_entry_point()
        except AssertionError as error:  # nnU-Net refuses arguments in this way
            flag = "\nIn this command: -prev_stage_predictions FOLDER" if "prev_stage" in str(error) else ""
            raise KDError(f"nnU-Net refused the arguments: {error or 'it gave no reason'}{flag}") from error


class CommandPredictor(FastPredictor):
    """The command's predictor: it checks early for what is missing, and runs the network in its runtime."""

    how: ClassVar[HowToCompute] = HowToCompute()
    images: ClassVar[Path | None] = None

    def initialize_from_trained_model_folder(
        self, model_training_output_dir: str, use_folds: Any, checkpoint_name: str = "checkpoint_final.pth"
    ) -> None:
        folder = Path(model_training_output_dir)
        if self.images is not None and (folder / "dataset.json").is_file():  # before a network is loaded and timed
            for problem in image_problems(self.images, folder):
                print(f"nnunetv2_kd: WARNING: {problem}. The other cases are predicted.", file=sys.stderr)
        if is_exported(folder):
            print(f"nnunetv2_kd: the network runs in {load_exported(self, folder, use_folds or ())}")
            return
        check_model(folder, use_folds or (), checkpoint_name)
        super().initialize_from_trained_model_folder(model_training_output_dir, use_folds, checkpoint_name)
        if self.device.type != "cpu":
            return
        if self.how.cpu_speed is not None:
            print(f"nnunetv2_kd: the network computes in {set_cpu_speed(self, self.how.cpu_speed)}")
            return
        found = sorted(fold_name(file.parent) for file in folder.glob(f"fold_*/{checkpoint_name}"))
        folds = use_folds or [fold for fold in found if fold != "all"]
        checkpoints = [folder / f"fold_{fold}" / checkpoint_name for fold in folds]
        chosen = use_runtime(self, checkpoints, self.how.runtime, self.how.precision)
        for problem in chosen.problems:
            print(f"nnunetv2_kd: {problem}")
        print(f"nnunetv2_kd: the network runs in {chosen}")


def image_problems(images: Path, model: Path) -> list[str]:
    """The problems of the cases to predict, one line each, according to the files' names, headers and sizes.

    Raises:
        KDError: if there is no case at all, or none that can be predicted.
    """
    plans, dataset_json = read_model_files(model)
    ending, reader = dataset_json["file_ending"], reader_of(plans, dataset_json)
    cases = cases_in(images, ending)
    files = {case: channel_files(images, case, ending) for case in cases}
    expected = file_per_channel(reader, dataset_json)
    problems = channel_problems(images, ending, expected)
    problems += reading_problems(files, reader, 0, whole=False)
    bad = {problem.split(":")[0] for problem in problems}
    if len(bad) == len(cases):
        raise KDError(listing(f"No image in -i {images} can be predicted:", problems[:SHOWN]))
    return problems


def set_cpu_speed(predictor: nnUNetPredictor, wanted: cpu_mode.CpuSpeed) -> cpu_mode.ChosenMode | None:
    """Let a predictor's network compute in torch in the given mode. On other devices than a CPU, nothing changes, and
    the result is None."""
    if predictor.device.type != "cpu":
        return None
    plans, configuration = predictor.plans_manager, predictor.configuration_manager
    channels = determine_num_input_channels(plans, configuration, predictor.dataset_json)
    with torch_threads(prediction_threads()):
        return cpu_mode.choose_mode(predictor.network, wanted, (1, channels, *configuration.patch_size))


def check_model(folder: Path, folds: Sequence[int | str], checkpoint_name: str) -> None:
    """Check that the model's files exist.

    Raises:
        KDError: names the files that do not, the folds that do, and unfinished trainings.
    """
    files = [folder / "plans.json", folder / "dataset.json"]
    checkpoints = [folder / f"fold_{fold}" / checkpoint_name for fold in folds]
    missing = [
        f"{file} does not exist{_unfinished_note(file)}" for file in [*files, *checkpoints] if not file.is_file()
    ]
    if missing:
        trained = sorted(fold_name(file.parent) for file in folder.glob(f"fold_*/{checkpoint_name}"))
        together = [fold for fold in trained if fold != ALL] or trained  # `all` is not part of a cross-validation
        found = f"Folds with {checkpoint_name}: {', '.join(trained)}. Name them: -f {' '.join(together)}"
        others = "" if trained else _models_beside(folder)
        raise KDError(listing("The model is not complete:", missing) + (f"\n{found}" if trained else others))


def _models_beside(folder: Path) -> str:
    """The trained models of the same dataset, as flags; empty if there are none."""
    names = {path.folder.name for path in checkpoints_of(folder.parent.name)} if nnUNet_results.is_set() else set()
    parsed = [parts for name in sorted(names) if (parts := parse_model_name(name)) is not None]
    lines = [f"-tr {parts.trainer} -p {parts.plans} -c {parts.configuration}" for parts in parsed]
    return "\n" + listing(f"Models of {folder.parent.name}:", lines) if lines else ""


def _unfinished_note(file: Path) -> str:
    begun = sorted(other.name for other in file.parent.glob("checkpoint_*.pth"))
    if file.suffix != ".pth" or not begun:
        return ""
    return f": its training is not finished (to go on, add --c; or predict with -chk {begun[-1]})"


def _parse_known(arguments: Sequence[str]) -> argparse.Namespace:
    """The subset of nnU-Net's arguments that is checked early."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("-m", dest="model", type=Path)
    parser.add_argument("-i", dest="images", type=Path)
    parser.add_argument("-o", dest="output", type=Path)
    parser.add_argument("-f", dest="folds", nargs="+")
    parser.add_argument("-d", dest="dataset")
    parser.add_argument("-device", default="cuda")
    return parser.parse_known_args(list(arguments))[0]


@contextmanager
def _as_command(name: str, arguments: Sequence[str], predictor: type) -> Iterator[None]:
    """Within this context, nnU-Net's entry points read these arguments and predict with this predictor."""
    before = sys.argv, predict_from_raw_data.nnUNetPredictor
    sys.argv, predict_from_raw_data.nnUNetPredictor = [name, *arguments], predictor
    try:
        yield
    finally:
        sys.argv, predict_from_raw_data.nnUNetPredictor = before
