"""``python predict.py``: the arguments, the cases one after another, and what is printed about them."""

import argparse
import json
import signal
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from tqdm import tqdm

from .cases import Case, cases_in, check_writable, write_atomically
from .errors import RunnerError, first_line
from .images import Image, read_image
from .model import Model, read_model
from .network import RUNTIMES
from .predictor import Predictor, Profile, peak_memory_mb
from .self_test import self_test

DONE, SOME_FAILED, NOT_BEGUN, INTERRUPTED = 0, 1, 2, 130  # exit statuses

AXES = [sorted(axes) for axes in product("RL", "AP", "SI")]


@dataclass
class Result:
    """The outcome of one case."""

    case: str
    output: str | None = None
    error: str | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    peak_mb: dict[str, float] = field(default_factory=dict)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="predict.py",
        description="Segment images with the model in this folder. Images are named CASE_0000.nii.gz (the model's "
        "file ending), with _0001 and so on for further channels; segmentations are named CASE.nii.gz.",
        epilog="Exit status: 0 all cases are done; 1 some cases failed (they are named) and the others are done; "
        "2 nothing was started; 130 interrupted.",
    )
    made.add_argument("-i", type=Path, metavar="IN", help="folder of images, or a single image file")
    made.add_argument("-o", type=Path, metavar="OUT", help="folder for the segmentations")
    made.add_argument(
        "--previous", type=Path, metavar="FOLDER", help="for a cascade: segmentations of the previous stage"
    )
    made.add_argument("--dicom", action="store_true", help="-i is a DICOM series (or folders of one each); writes SEG")
    made.add_argument(
        "--orientation", metavar="RAS", help="of the model's training images, if the model does not have it"
    )
    made.add_argument("--runtime", choices=RUNTIMES, default=RUNTIMES[0], help=f"default: {RUNTIMES[0]}")
    made.add_argument("--threads", type=int, metavar="N", help="default: as many processors as this process may use")
    made.add_argument("--no-mirroring", action="store_true", help="up to 8 times as fast, a little less accurate")
    made.add_argument("--no-postprocessing", action="store_true", help="keep all components")
    made.add_argument(
        "--memory", type=float, default=1.0, metavar="GB", help="for logits; larger ones are kept in a file"
    )
    made.add_argument("--scratch", type=Path, metavar="FOLDER", help="of that file; default: -o")
    made.add_argument("--profile", action="store_true", help="show seconds and memory of every stage")
    made.add_argument("--json", action="store_true", help="print one JSON object, and everything else to stderr")
    made.add_argument("--quiet", action="store_true", help="print problems only")
    made.add_argument("--self-test", action="store_true", help="segment the test image of this folder, and compare")
    return made


def main(folder: Path, arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        folder: the exported folder.
        arguments: None for those of the process.

    Returns:
        The exit status.
    """
    args = parser().parse_args(arguments)
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        if args.self_test:
            return _self_test(folder, args)
        return _predict(folder, args)
    except RunnerError as error:
        _print_failure(str(error), args)
        return NOT_BEGUN
    except ImportError as error:
        name = "requirements-dicom.txt" if args.dicom else "requirements.txt"
        _print_failure(f"{first_line(error)}\nType: python -m pip install -r {folder / name}", args)
        return NOT_BEGUN
    except KeyboardInterrupt:
        _print_failure("Interrupted before the first case.", args)
        return INTERRUPTED
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def _print_failure(message: str, args: argparse.Namespace) -> None:
    print(message, file=sys.stderr)
    if args.json:
        print(json.dumps({"error": message, "cases": []}))


def _predict(folder: Path, args: argparse.Namespace) -> int:
    if args.i is None or args.o is None:
        raise RunnerError("Name the images and a folder for the segmentations: -i IN -o OUT (or try --self-test)")
    _check_numbers(args)
    model = read_model(folder)
    if args.dicom:
        import highdicom  # noqa: F401 - a missing package is reported before any time is spent

        from .dicom import series_in

        cases = series_in(args.i, model)
    else:
        cases = cases_in(args.i, model, args.previous)
    check_writable(args.o)
    if args.scratch is not None and not args.scratch.is_dir():
        raise RunnerError(f"--scratch {args.scratch} is not a folder.")
    started = time.perf_counter()
    predictor = Predictor(
        model,
        args.runtime,
        args.threads,
        args.memory,
        args.scratch or args.o,
        not args.no_mirroring,
        not args.no_postprocessing,
    )
    opened = time.perf_counter() - started
    results: list[Result] = []
    shown = None if not args.quiet else True  # None: shown only on a terminal
    interrupted = False
    try:
        for case in tqdm(cases, unit="case", disable=True if len(cases) == 1 else shown, file=sys.stderr):
            results.append(_predict_case(predictor, case, args, shown if len(cases) == 1 else True))
            _print_result(results[-1], args)
    except KeyboardInterrupt:
        interrupted = True
    failed = [result for result in results if result.error is not None]
    if args.json:
        report = {"cases": [asdict(result) for result in results], "seconds_to_open": opened}
        print(json.dumps(report | {"peak_mb": peak_memory_mb(), "interrupted": interrupted}))
    if failed:
        done = len(results) - len(failed)
        lines = [f"{len(failed)} of {len(cases)} cases were not predicted; {done} were:"]
        print("\n".join(lines + [f"  - {r.case}: {r.error}" for r in failed]), file=sys.stderr)
    if interrupted:
        print(
            f"Interrupted after {len(results)} of {len(cases)} cases. The files that were written are complete.",
            file=sys.stderr,
        )
        return INTERRUPTED
    return SOME_FAILED if failed else DONE


def _check_numbers(args: argparse.Namespace) -> None:
    if args.threads is not None and args.threads < 1:
        raise RunnerError(f"--threads must be at least 1, found {args.threads}.")
    if not args.memory >= 0:
        raise RunnerError(f"--memory must be 0 or more, found {args.memory:g}.")
    if args.orientation is not None and sorted(args.orientation) not in AXES:
        raise RunnerError(f"--orientation must be like RAS, LPS or LAS, found {args.orientation}.")


def _predict_case(predictor: Predictor, case: Case, args: argparse.Namespace, hide_tiles: bool | None) -> Result:
    """Predict and write one case. Any failure is recorded in the result, so that the other cases continue."""
    profile = Profile()
    result = Result(case.name, seconds=profile.seconds, peak_mb=profile.peak_mb)

    def progress(tiles: list[Any]) -> Iterable[Any]:
        return tqdm(tiles, desc=case.name, unit="tile", disable=hide_tiles, leave=False, file=sys.stderr)

    try:
        if args.dicom:
            from .dicom import segment_series

            result.output = str(segment_series(predictor, case, args.o, profile, progress, args.orientation))
        else:
            result.output = str(segment_files(predictor, case, args.o, profile, progress))
    except MemoryError:
        result.error = "not enough memory. Keep less in memory: --memory 0"
    except (RunnerError, ImportError) as error:
        result.error = str(error)
    except Exception as error:  # any error: the other cases continue, and it is reported at the end
        result.error = first_line(error)
    return result


def segment_files(predictor: Predictor, case: Case, folder: Path, profile: Profile, progress: Any = iter) -> Path:
    """Read, segment and write one case; returns the file that was written."""
    model = predictor.model
    place: list[Image] = []  # what writing needs, without the voxels

    def read() -> tuple[Any, list[float]]:
        with profile.stage("reading"):
            image = read_image(model.reader, case.files, len(model.channels))
        place[:] = [Image(image.voxels[:0], image.spacing, image.write)]
        return image.voxels, image.spacing

    previous = _previous(case, model)
    found = predictor.segment(read, previous, profile, progress)
    with profile.stage("writing"):
        write = place[0].write
        return write_atomically(folder, f"{case.name}{model.file_ending}", lambda file: write(found, file))


def _previous(case: Case, model: Model) -> Any:
    if case.previous is None or not model.needs_previous:
        return None
    return read_image(model.reader, [case.previous], 1).voxels[0]


def _print_result(result: Result, args: argparse.Namespace) -> None:
    """Print one line per case, and with --profile its stages."""
    if result.error is not None or args.quiet:
        return
    stream = sys.stderr if args.json else sys.stdout
    took = sum(
        seconds for stage, seconds in result.seconds.items() if stage != "reading"
    )  # reading is part of preprocessing
    tqdm.write(f"{result.case}: {took:.1f} s, {result.output}", file=stream)
    if args.profile:
        for stage, seconds in result.seconds.items():
            tqdm.write(f"  {stage:15} {seconds:8.2f} s   peak {result.peak_mb[stage]:6.0f} MB", file=stream)


def _self_test(folder: Path, args: argparse.Namespace) -> int:
    _check_numbers(args)
    model = read_model(folder)
    predictor = Predictor(model, args.runtime, args.threads, args.memory, scratch=args.scratch or Path("."))
    found = self_test(predictor)
    if args.json:
        print(json.dumps(asdict(found) | {"passed": found.passed}))
    print(found.summary(), file=sys.stderr if args.json else sys.stdout)
    return DONE if found.passed else SOME_FAILED
