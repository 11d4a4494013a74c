"""How a prediction's processor time is spent, part by part, in nnUNetv2_predict and nnUNetv2_kd predict.

    OMP_NUM_THREADS=1 python benchmarks/shares.py -d 4 -c 3d_fullres -p PLANS -tr TRAINER -f 0 -i IMAGES

takes the arguments of nnUNetv2_predict except -o and -device, and ``--runtime`` for the second command. Each command is
run twice: in one process (-npp 0 -nps 0), where every part is timed without the parts that it calls; and as users run
it, with the processes that it starts. The second command has already converted its network.
"""

import importlib
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

PARTS = (
    "start-up and imports",
    "model: network built, weights read, runtime opened",
    "images read and preprocessed",
    "network",
    "mirroring: flips and sums",
    "tiles and Gaussian weights",
    "logits to segmentation",
    "files written",
    "rest",
)
STOCK, OURS = "nnUNetv2_predict", "nnUNetv2_kd predict"


class Parts:
    """Processor seconds of parts, each without the parts that it calls."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._inside: list[str] = []
        self._since = 0.0  # the process's own clock starts with it
        self.enter("start-up and imports")

    def enter(self, name: str) -> None:
        self._settle()
        self._inside.append(name)

    def leave(self) -> None:
        self._settle()
        self._inside.pop()

    def _settle(self) -> None:
        now = time.process_time()
        if self._inside:
            self.seconds[self._inside[-1]] += now - self._since
        self._since = now

    def time(self, owner: Any, function: str, name: str) -> None:
        """Count an attribute's calls as a part."""
        setattr(owner, function, self.timed(getattr(owner, function), name))

    def timed(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        @wraps(function)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            self.enter(name)
            try:
                return function(*args, **kwargs)
            finally:
                self.leave()

        return wrapped


def run_timed(ours: bool, arguments: list[str]) -> dict[str, float]:
    """Run a command in this process."""
    parts = Parts()
    # the command's imports, before it does anything else
    cli = importlib.import_module("nnunetv2_kd.cli.main") if ours else None
    if cli is not None:
        cli.import_command("predict", whole_process=True)
    export = importlib.import_module("nnunetv2.inference.export_prediction")
    raw = importlib.import_module("nnunetv2.inference.predict_from_raw_data")
    parts.leave()
    parts.enter("rest")
    _, of_model, images, network, mirroring, tiles, labels, files, _ = PARTS
    kind = raw.nnUNetPredictor
    if ours:
        kind = importlib.import_module("nnunetv2_kd.inference.predict").CommandPredictor
        parts.time(kind, "_preprocessed", images)
        parts.time(kind, "segmentation_of", labels)
        parts.time(kind, "_write", files)
    else:
        default = importlib.import_module("nnunetv2.preprocessing.preprocessors.default_preprocessor")
        parts.time(default.DefaultPreprocessor, "run_case", images)
        parts.time(export, "convert_predicted_logits_to_segmentation_with_correct_shape", labels)
        parts.time(raw, "export_prediction_from_logits", files)
    initialize = parts.timed(kind.initialize_from_trained_model_folder, of_model)

    def initialized(self: Any, *args: Any, **kwargs: Any) -> None:
        initialize(self, *args, **kwargs)
        for name in ("forward", "forward_shared"):
            if hasattr(self.network, name):
                parts.time(self.network, name, network)

    kind.initialize_from_trained_model_folder = initialized
    parts.time(kind, "predict_logits_from_preprocessed_data", tiles)
    parts.time(kind, "_internal_maybe_mirror_and_predict", mirroring)
    if cli is not None:
        assert cli.main(["predict", *arguments]) == 0
    else:
        sys.argv = ["nnUNetv2_predict", *arguments]
        raw.predict_entry_point()
    parts.leave()
    return dict(parts.seconds)


def whole(command: list[str]) -> float:
    """Processor seconds of a command and of all processes that it starts."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    if sys.argv[1] == "--child":
        ours, file, *arguments = sys.argv[2:]
        Path(file).write_text(json.dumps(run_timed(ours == "ours", arguments)))
        return
    given = sys.argv[1:]
    runtime = []
    if "--runtime" in given:
        at = given.index("--runtime")
        runtime = given[at : at + 2]
        del given[at : at + 2]
    found: dict[str, dict[str, float]] = {}
    total: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        arguments = [*given, "-device", "cpu", "--disable_progress_bar", "-o", f"{folder}/out"]
        for name, program, more in ((STOCK, ["nnUNetv2_predict"], []), (OURS, ["nnUNetv2_kd", "predict"], runtime)):
            command = [str(Path(sys.executable).parent / program[0]), *program[1:]]
            if name == OURS:
                whole([*command, *more, *arguments])  # converts
            kind = "ours" if name == OURS else "stock"
            child = [sys.executable, __file__, "--child", kind, f"{folder}/{kind}.json", *more, *arguments]
            alone = whole([*child, "-npp", "0", "-nps", "0"])
            found[name] = json.loads(Path(f"{folder}/{kind}.json").read_text())
            found[name]["rest"] += alone - sum(found[name].values())  # after the command, until the process is gone
            total[name] = whole([*command, *more, *arguments])
    print(f"| processor time, s | `{STOCK}` | share | `{OURS}` | share |\n|---|---:|---:|---:|---:|")
    for part in PARTS:
        print(f"| {part} | {cells(found, total, lambda name, part=part: found[name].get(part, 0.0))}")
    print(f"| processes that it starts | {cells(found, total, lambda n: max(0.0, total[n] - sum(found[n].values())))}")
    print(f"| **the command as users run it** | {cells(found, total, total.__getitem__)}")


def cells(found: dict[str, Any], total: dict[str, float], of: Callable[[str], float]) -> str:
    return " | ".join(f"{of(name):.2f} | {100 * of(name) / total[name]:.0f} %" for name in found) + " |"


if __name__ == "__main__":
    main()
