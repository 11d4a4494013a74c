"""What trained models cost on this device, against the largest of them: parameters, FLOPs, memory, time per case."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw

from nnunetv2_kd.benchmark.cost import ModelCost, model_size
from nnunetv2_kd.benchmark.timing import TimedModel, peak_in_own_process, time_in_turns
from nnunetv2_kd.choices import Precision, RuntimeChoice
from nnunetv2_kd.errors import KDError, listing
from nnunetv2_kd.inference.device import check_device, device_name
from nnunetv2_kd.inference.runtimes import check_runtime, combinations
from nnunetv2_kd.networks import cpu_mode
from nnunetv2_kd.nnunet.datasets import trained_dataset, training_images
from nnunetv2_kd.nnunet.images import cases_in, channel_files, reader_of, reading_problems
from nnunetv2_kd.nnunet.model_folder import FINAL, parse_model_name
from nnunetv2_kd.nnunet.splits import read_splits
from nnunetv2_kd.nnunet.trained_models import TrainedModel, find_models, read_model
from nnunetv2_kd.teachers.check import channels

Say = Callable[[str], None]
SAME_IMAGES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "number of channels": lambda dataset_json: len(channels(dataset_json)),
    "file_ending": lambda dataset_json: dataset_json["file_ending"],
}
EXPECTED = "TRAINER__PLANS__CONFIGURATION with plans.json, dataset.json and fold_0/checkpoint_final.pth"


@dataclass(frozen=True)
class BenchmarkRequest:
    """The flags of ``nnUNetv2_kd benchmark``."""

    device: torch.device
    folders: Sequence[Path] = ()
    dataset: str | None = None
    configurations: list[str] | None = None
    plans: list[str] | None = None
    trainers: list[str] | None = None
    fold: str | None = None
    images: Path | None = None
    cases: int = 5
    repeats: int = 3
    cpu_speeds: Sequence[cpu_mode.CpuSpeed] = (cpu_mode.STOCK,)
    runtimes: Sequence[RuntimeChoice] = ()
    precisions: Sequence[Precision] = ("f32",)

    def kinds(self) -> list[dict[str, Any]]:
        """The ways in which every model is timed: stock nnU-Net's predictor at every CPU speed, then every runtime in
        every precision that it supports.

        Raises:
            KDError: if runtimes and precisions do not fit together.
        """
        stock: list[dict[str, Any]] = [{"cpu_speed": cpu_speed} for cpu_speed in self.cpu_speeds]
        return stock + [{"runtime": r, "precision": p} for r, p in combinations(self.runtimes, self.precisions)]


@dataclass
class BenchmarkRow:
    """One model, computing in one way."""

    name: str
    timed: TimedModel
    cost: ModelCost
    peak_mib: float | None = None


@dataclass
class Benchmark:
    """The results. The first row with a time is the reference for the others.

    Attributes:
        cases: names.
        images: where the cases come from, in words.
        on_cpu: whether to show each row's CPU mode.
        empty_mib: on a CPU, memory of a process before it loads a model.
    """

    rows: list[BenchmarkRow]
    device: str
    cases: list[str]
    images: str
    repeats: int
    on_cpu: bool = True
    empty_mib: float | None = None
    problems: list[str] = field(default_factory=list)

    @property
    def reference(self) -> BenchmarkRow:
        """The row that the others are compared with."""
        return next((row for row in self.rows if row.timed.ms()), self.rows[0])

    def times_faster(self, row: BenchmarkRow, mirroring: bool = True) -> float | None:
        """How many times as fast a row is as the reference."""
        ms, of_first = row.timed.ms(mirroring), self.reference.timed.ms(mirroring)
        return of_first / ms if ms and of_first else None


def benchmark(request: BenchmarkRequest, say: Say) -> Benchmark:
    """Time the models that the request names.

    Raises:
        KDError: if the device, a model or the images are missing, or no model can be timed.
    """
    check_request(request)
    models = _models(request)
    cases, where = _cases(models, request)
    chosen = sorted(cases)[: request.cases]
    reader = reader_of(models[0].plans, models[0].dataset_json)
    problems = reading_problems({case: cases[case] for case in chosen}, reader, len(channels(models[0].dataset_json)))
    if problems:
        raise KDError(listing(f"Nothing was timed, as images {where} cannot be predicted:", problems))
    names = [model.name for model in models]
    rows = [
        BenchmarkRow(
            model.name if names.count(model.name) == 1 else str(model.folder),
            TimedModel(model, **kind, mirroring=(True, False)),
            model_size(model),
        )
        for model in models
        for kind in request.kinds()
    ]
    found = Benchmark(rows, device_name(request.device), chosen, where, request.repeats, request.device.type == "cpu")
    say(f"timing {len(rows)} rows, {len(chosen)} cases, {request.repeats} repeats, on {found.device}")
    time_in_turns([row.timed for row in rows], [cases[case] for case in chosen], request.device, request.repeats)
    for row in rows:
        row.peak_mib = row.timed.peak_mib
        if request.device.type == "cpu" and not row.timed.problem:
            _peak_on_cpu(row, found, cases[chosen[0]])
        found.problems += [f"{row.name}: {problem}" for problem in (row.cost.problem, row.timed.problem) if problem]
    if all(row.timed.problem for row in rows):
        raise KDError(listing("No model could be timed:", found.problems))
    return found


def check_request(request: BenchmarkRequest) -> None:
    """Check that the flags fit together and fit this machine.

    Raises:
        KDError: if they do not; says what to type.
    """
    check_device(request.device)
    if request.device.type != "cpu" and tuple(request.cpu_speeds) != (cpu_mode.STOCK,):
        raise KDError(f"--cpu_speed is for -device cpu, found -device {request.device.type}. Leave one of them out.")
    if not request.runtimes and tuple(request.precisions) != ("f32",):
        raise KDError(f"--precision {' '.join(request.precisions)} only applies to --runtime. Add: --runtime openvino")
    for runtime, precision in combinations(request.runtimes, request.precisions):
        check_runtime(runtime, precision, request.device.type)
        if precision == "bf16":
            cpu_mode.check_here("bfloat16")
    for cpu_speed in request.cpu_speeds:
        cpu_mode.check_here(cpu_speed)
    if bool(request.folders) == (request.dataset is not None):
        raise KDError("Name the models either with -m FOLDER FOLDER ..., teacher first, or with -d DATASET.")
    given = {"-c": request.configurations, "-p": request.plans, "-tr": request.trainers}
    narrowing = [flag for flag, values in given.items() if values]
    if request.folders and narrowing:
        raise KDError(f"-m already names the models; {' and '.join(narrowing)} select models of -d DATASET.")
    for flag, number in (("--cases", request.cases), ("--repeats", request.repeats)):
        if number < 1:
            raise KDError(f"{flag} must be at least 1, found {number}.")


def _models(request: BenchmarkRequest) -> list[TrainedModel]:
    """The named models, or those of a dataset, largest first."""
    folds = [request.fold] if request.fold is not None else None
    if request.folders:
        models = [_model_of_folder(folder, folds) for folder in request.folders]
    else:
        dataset = trained_dataset(str(request.dataset))
        found, _ = find_models(dataset, request.configurations, folds)
        models = [
            model
            for model in found
            if model.predicting_folds
            and (request.plans is None or model.plans_name in request.plans)
            and (request.trainers is None or model.trainer in request.trainers)
        ]
        if not models:
            title = f"No trained model of {dataset} has the -p and -tr asked for. Trained:"
            raise KDError(listing(title, [model.name for model in found if model.predicting_folds]))
        models.sort(key=lambda model: -(model_size(model).params or 0))
    for model in models:
        for key, of in SAME_IMAGES.items():
            ours, first = of(model.dataset_json), of(models[0].dataset_json)
            if ours != first:
                raise KDError(
                    f"The models cannot predict the same images: {key} is {ours} for {model.folder} and {first} for "
                    f"{models[0].folder}. Benchmark them one after the other."
                )
    return models


def _model_of_folder(folder: Path, folds: list[str] | None) -> TrainedModel:
    folder = folder.expanduser().absolute()
    if parse_model_name(folder.name) is None:
        raise KDError(f"-m {folder} is not a model folder. Expected: {EXPECTED}.")
    try:
        model = read_model(folder, folds)
    except KDError as error:
        raise KDError(f"-m {folder} is not a model: {error}. Expected: {EXPECTED}.") from error
    if not model.predicting_folds:
        every = read_model(folder)
        trained = [fold.name for fold in every.trained_folds]
        asked = f"fold {folds[0]}" if folds else "fold"
        hint = f"Trained folds: -f {' or '.join(trained)}" if trained else "Train one, or finish its training with --c."
        damaged = [fold.problem for fold in every.folds if (fold.folder / FINAL).is_file() and not fold.is_trained]
        if damaged and not trained:
            raise KDError(listing(f"-m {folder} has no trained {asked} that can be read:", damaged))
        raise KDError(f"-m {folder} has no trained {asked} (no checkpoint_final.pth). {hint}")
    return model


def _cases(models: list[TrainedModel], request: BenchmarkRequest) -> tuple[dict[str, list[str]], str]:
    """The channel files of each case, and in words where they come from."""
    first = models[0]
    ending = first.dataset_json["file_ending"]
    if request.images is not None:
        names = cases_in(request.images, ending)
        files = {name: channel_files(request.images, name, ending) for name in names}
        return files, f"of {request.images}"
    fold = first.predicting_folds[0].name
    dataset = first.dataset
    splits = read_splits(Path(nnUNet_preprocessed) / dataset) if nnUNet_preprocessed.is_set() else []
    if not fold.isdigit() or int(fold) >= len(splits):
        raise KDError(
            f"The validation cases of fold {fold} of {dataset} are not known: there is no splits_final.json with this "
            f"fold under nnUNet_preprocessed ({nnUNet_preprocessed if nnUNet_preprocessed.is_set() else 'not set'}). "
            "Give the images: -i IMAGES"
        )
    found = {case: training_images(first.dataset, case, ending) for case in splits[int(fold)]["val"]}
    files = {case: channels for case, channels in found.items() if channels}
    if not files:
        raise KDError(
            f"No image of the validation cases of fold {fold} of {dataset} is under nnUNet_raw "
            f"({nnUNet_raw if nnUNet_raw.is_set() else 'not set'}). Give the images: -i IMAGES"
        )
    return files, f"of the validation cases of fold {fold} of {dataset}"


def _peak_on_cpu(row: BenchmarkRow, found: Benchmark, files: list[str]) -> None:
    try:
        memory = peak_in_own_process(row.timed, files)
    except Exception as error:  # the process may have been killed for using too much memory
        found.problems.append(f"{row.name}: peak memory not known: {type(error).__name__}: {error}")
        return
    if memory is not None:
        row.peak_mib, found.empty_mib = memory
