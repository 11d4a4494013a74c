"""Write the portable folder, and check that it predicts what nnU-Net predicts."""

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from nnunetv2_kd.errors import KDError, listing
from nnunetv2_kd.inference.agreement import Agreement, Case, compare
from nnunetv2_kd.inference.choose import convert
from nnunetv2_kd.inference.convert import ONNX_FILE, OPENVINO_FILE, write_openvino
from nnunetv2_kd.inference.export import (
    ExportRequest,
    cases_to_compare,
    check_agreement,
    check_output,
    has_images,
    proof,
)
from nnunetv2_kd.inference.model_card import write_card
from nnunetv2_kd.inference.runtimes import check_runtime
from nnunetv2_kd.nnunet.files import read_json, sha256
from nnunetv2_kd.nnunet.model_folder import CheckpointPath
from nnunetv2_kd.nnunet.room_on_disk import whole_folder
from nnunetv2_kd.portable.describe import describe_model, orientation_of, postprocessing_of, read_postprocessing
from nnunetv2_kd.portable.load import checkpoints_of_model, load_model
from nnunetv2_kd.portable.requirements import BASE, Pinned, as_text, needed_packages
from nnunetv2_kd.portable.test_image import predict_with_nnunet, write_test_image
from nnunetv2_kd.portable.wheels import download_wheels, target_of
from nnunetv2_kd.runner import self_test as self_test_module
from nnunetv2_kd.runner.errors import RunnerError
from nnunetv2_kd.runner.images import READERS, read_image
from nnunetv2_kd.runner.model import MODEL_FILE, SUMS_FILE, read_model
from nnunetv2_kd.runner.network import allowed_threads
from nnunetv2_kd.runner.predictor import Predictor
from nnunetv2_kd.runner.self_test import SelfTest

FILES = Path(__file__).parent / "files"
RUNNER = Path(self_test_module.__file__).parent
WHEELS = "wheels"


@dataclass(frozen=True)
class PortableRequest:
    """The arguments of ``nnUNetv2_kd export --format portable``.

    Attributes:
        base: the arguments that it shares with the other formats; its model is the first.
        models: folders or zips of the models that predict together.
        openvino: whether to write OpenVINO's files in addition to the ONNX ones.
        postprocessing: nnU-Net's ``postprocessing.json``; None: that of the model's folds, if there is one.
        codes: JSON file with DICOM codes of the structures, by label name.
        wheels: platform and Python to download wheels for; None: none.
    """

    base: ExportRequest
    models: Sequence[Path]
    configurations: Sequence[str]
    openvino: bool = False
    postprocessing: Path | None = None
    codes: Path | None = None
    wheels: Sequence[str] | None = None


@dataclass(frozen=True)
class Written:
    """The result of an export.

    Attributes:
        self_test: comparison of the folder with nnU-Net in PyTorch on the test image.
        agreement: comparison on real cases; None if there are none.
    """

    self_test: SelfTest
    agreement: Agreement | None


def export_portable(
    request: PortableRequest, say: Callable[[str], None], progress: Callable[..., Iterable] = iter
) -> Written:
    """Write the folder. It gets its name only when it is complete and has passed its tests.

    Raises:
        KDError: if a model cannot be read or needs something that the runner cannot do, a network cannot be converted,
            or the folder predicts something else than nnU-Net; nothing is left behind then.
    """
    base = request.base
    check_output(base)
    check_runtime("onnx", "f32", "cpu")
    if request.openvino:
        check_runtime("openvino", "f32", "cpu")
    target = target_of(request.wheels) if request.wheels is not None else None
    models = [
        checkpoints_of_model(model, configuration, base.folds, base.checkpoint)
        for model, configuration in zip(request.models, request.configurations, strict=True)
    ]
    loaded = [load_model(paths) for paths in models]
    predictors = [predictor for predictor, _ in loaded]
    for note in dict.fromkeys(note for _, notes in loaded for note in notes):
        say(note)
    base = replace(base, model=models[0][0].folder)
    cases = _cases(base, predictors, say)
    try:
        with whole_folder(base.output) as unfinished:
            content = describe_model(predictors, _network_names(predictors, base.folds))
            content |= {"postprocessing": _postprocessing(request, models[0], say), "codes": _codes(request, content)}
            content["orientation"] = orientation_of([file for case in cases for file in case.files])
            say(f"exporting {', '.join(_name(paths) for paths in models)}, fold {' '.join(base.folds)}")
            _write_networks(unfinished, predictors, content, request)
            pinned = _write_runner(unfinished, content, request)
            say("predicting the test image with nnU-Net in PyTorch")
            started = time.perf_counter()
            write_test_image(unfinished, predictors, content["postprocessing"])
            ms = 1000 * (time.perf_counter() - started)
            _write_sums(unfinished)
            runner = _runner(unfinished)
            tested = self_test_module.self_test(runner)
            if not tested.passed:
                raise KDError(
                    f"The exported folder predicts something else than nnU-Net, and was not kept. {tested.summary()}"
                )
            found = _compare_cases(runner, predictors, cases, base, say, progress)
            agreement = found if found is not None else Agreement(ms=(ms, 1000 * tested.seconds))
            about = _about(content, models, predictors[0], tested, agreement, base)
            write_card(unfinished, about, base, predictors[0], agreement)
            (unfinished / "export.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
            _write_sums(unfinished)
            if target is not None:
                say(f"downloading wheels for {target[0]}, Python {target[1]}")
                download_wheels(unfinished / WHEELS, pinned, *target)
    except RunnerError as error:
        raise KDError(f"The exported folder does not run, and was not kept: {error}") from error
    return Written(tested, found)


def _cases(base: ExportRequest, predictors: Sequence[nnUNetPredictor], say: Callable[[str], None]) -> list[Case]:
    """The cases to compare on; empty if there are no images, or the previous segmentations of a cascade
    are not given."""
    stages = [predictor.configuration_manager.previous_stage_name for predictor in predictors]
    needs_previous = any(stage is not None for stage in stages)
    if needs_previous and base.previous is None:
        if base.images is not None:
            raise KDError(
                "This model refines segmentations of a previous stage. Give those for the images of -i: "
                "-prev_stage_predictions FOLDER"
            )
        say("without -prev_stage_predictions a cascade is compared on the test image only")
        return []
    if not has_images(base):
        say("no images to compare on (-i IMAGES): compared on the test image only")
        return []
    return cases_to_compare(base, predictors[0].dataset_json)


def _name(paths: Sequence[CheckpointPath]) -> str:
    return paths[0].folder.name


def _network_names(predictors: Sequence[nnUNetPredictor], folds: Sequence[str]) -> list[list[str]]:
    return [[f"networks/model_{number}_fold_{fold}.onnx" for fold in folds] for number in range(len(predictors))]


def _write_networks(
    folder: Path, predictors: Sequence[nnUNetPredictor], content: dict[str, Any], request: PortableRequest
) -> None:
    """Convert every fold's network, and compare it with PyTorch on a patch of noise."""
    (folder / "networks").mkdir()
    for predictor, part in zip(predictors, content["configurations"], strict=True):
        for number, (name, fold) in enumerate(zip(part["networks"], request.base.folds, strict=True)):
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                convert(predictor, number, fold, "onnx", "f32", Path(scratch))
                os.replace(Path(scratch) / ONNX_FILE, folder / name)
                if request.openvino:
                    write_openvino(folder / name, Path(scratch))
                    for suffix in (".xml", ".bin"):
                        source = (Path(scratch) / OPENVINO_FILE).with_suffix(suffix)
                        os.replace(source, (folder / name).with_suffix(suffix))


def _write_runner(folder: Path, content: dict[str, Any], request: PortableRequest) -> list[Pinned]:
    """Write everything except the networks and the test image; returns what ``requirements.txt`` pins."""
    (folder / MODEL_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    (folder / "runner").mkdir()
    for file in sorted(RUNNER.glob("*.py")):
        shutil.copyfile(file, folder / "runner" / file.name)
    shutil.copyfile(FILES / "predict.py.txt", folder / "predict.py")
    shutil.copyfile(FILES / "Dockerfile", folder / "Dockerfile")
    shutil.copyfile(FILES / "dockerignore", folder / ".dockerignore")
    reader = READERS[content["reader"]].packages
    pinned = needed_packages([*BASE, "onnxruntime", *reader])
    (folder / "requirements.txt").write_text(as_text(pinned), encoding="utf-8")
    openvino = as_text(needed_packages([*BASE, "openvino", *reader]))
    (folder / "requirements-openvino.txt").write_text(openvino, encoding="utf-8")
    dicom = as_text(needed_packages([*BASE, "onnxruntime", "SimpleITK", "pydicom", "highdicom", *reader]))
    (folder / "requirements-dicom.txt").write_text(dicom, encoding="utf-8")
    licence = (FILES / "LICENSE").read_text(encoding="utf-8")
    of_model = request.base.licence or "not stated"
    head = (
        f"The model (networks/, model.json): {of_model}.\n\nThe runner (predict.py, runner/), which follows nnU-Net, "
        "batchgenerators and acvl_utils, all under the same licence:\n\n"
    )
    (folder / "LICENSE").write_text(head + licence, encoding="utf-8")
    return pinned


def _write_sums(folder: Path) -> None:
    """Write ``SHA256SUMS`` in the form of ``sha256sum -c``."""
    files = [file for file in sorted(folder.rglob("*")) if file.is_file() and file.name != SUMS_FILE]
    lines = [f"{sha256(file)}  {file.relative_to(folder).as_posix()}\n" for file in files]
    (folder / SUMS_FILE).write_text("".join(lines), encoding="utf-8")


def _postprocessing(request: PortableRequest, paths: Sequence[CheckpointPath], say: Callable[[str], None]) -> list[Any]:
    file = request.postprocessing
    if file is None and len(request.models) == 1:
        file = postprocessing_of(paths[0].folder, request.base.folds)
        if file is not None:
            say(f"with the postprocessing that nnU-Net determined: {file.parent.name}/{file.name}")
    return read_postprocessing(file) if file is not None else []


def _codes(request: PortableRequest, content: dict[str, Any]) -> dict[str, list[str]]:
    if request.codes is None:
        return {}
    codes = read_json(request.codes)
    names = [name for name in content["labels"] if name not in ("background", "ignore")]
    if not isinstance(codes, dict):
        raise KDError(f'{request.codes} must contain an object such as {{"{names[0]}": ["10200004", "SCT", "Liver"]}}')
    problems = [f"{name} is not a label; labels are {', '.join(names)}" for name in codes if name not in names]
    problems += [
        f"{name}: expected [value, scheme, meaning], found {code}"
        for name, code in codes.items()
        if not (isinstance(code, list) and len(code) == 3 and all(isinstance(part, str) and part for part in code))
    ]
    if problems:
        raise KDError(listing(f"{request.codes} does not fit:", problems))
    return codes


def _runner(folder: Path) -> Predictor:
    """A predictor that uses the folder as its users will; it keeps large logits in the folder for a while."""
    return Predictor(read_model(folder), threads=allowed_threads(), scratch=folder.parent)


def _compare_cases(
    runner: Predictor,
    predictors: Sequence[nnUNetPredictor],
    cases: Sequence[Case],
    base: ExportRequest,
    say: Callable[[str], None],
    progress: Callable[..., Iterable],
) -> Agreement | None:
    """Compare with nnU-Net in PyTorch on real cases.

    Raises:
        KDError: if more voxels differ than allowed.
    """
    if not cases:
        return None
    say(f"comparing with PyTorch on {len(cases)} case{'s' if len(cases) > 1 else ''}")
    raw = Predictor(runner.model, threads=allowed_threads(), scratch=runner.model.folder.parent, postprocessing=False)
    first = predictors[0]
    reader = first.plans_manager.image_reader_writer_class
    found = compare(partial(_nnunet, predictors), partial(_portable, raw), first.dataset_json, reader, cases, progress)
    check_agreement(found, base)
    return found


def _nnunet(predictors: Sequence[nnUNetPredictor], case: Case) -> np.ndarray:
    previous = Path(case.previous) if case.previous is not None else None
    return predict_with_nnunet(case.files, previous, predictors)[0]


def _portable(runner: Predictor, case: Case) -> np.ndarray:
    model = runner.model
    image = read_image(model.reader, [Path(file) for file in case.files], len(model.channels))
    previous = read_image(model.reader, [Path(case.previous)], 1).voxels[0] if case.previous is not None else None
    return runner.segment(lambda: (image.voxels.copy(), image.spacing), previous)


def _about(
    content: dict[str, Any],
    models: Sequence[Sequence[CheckpointPath]],
    first: nnUNetPredictor,
    tested: SelfTest,
    agreement: Agreement,
    base: ExportRequest,
) -> dict[str, Any]:
    """The content of ``export.json``: what was exported, and the comparison."""
    return {
        "format": "portable",
        "precision": "f32",
        "configuration": content["configurations"][0]["name"],
        "trainer": first.trainer_name,
        "mirroring_axes": content["configurations"][0]["mirroring_axes"] or None,
        "folds": list(base.folds),
        "checkpoints": {
            f"{_name(paths)}, fold {path.fold}": sha256(path.checkpoint) for paths in models for path in paths
        },
        "self_test": asdict(tested),
        "proof": proof(agreement, base) if agreement.cases else None,
    }
