"""``nnUNetv2_kd doctor``: would a training start here, and if not, which command solves it?"""

import argparse
import importlib.metadata
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw, nnUNet_results
from rich.table import Table
from rich.text import Text

from nnunetv2_kd import discovery
from nnunetv2_kd.errors import KDError
from nnunetv2_kd.methods.registry import find_method, method_names, own_methods, source_of
from nnunetv2_kd.networks.cpu_mode import cpu_has_bfloat16
from nnunetv2_kd.nnunet.datasets import DATASETS
from nnunetv2_kd.nnunet.files import why_not_writable
from nnunetv2_kd.nnunet.model_folder import checkpoints_of
from nnunetv2_kd.nnunet.paths import export_line, mistake_in, problem_of
from nnunetv2_kd.terminal import plain_console
from nnunetv2_kd.trainers import TRAINERS
from nnunetv2_kd.trainers.options import VARIABLE, options_file, resolve_options
from nnunetv2_kd.trainers.variants import variant_names

TRAINER = "nnUNetTrainerRegionKD"
WORKERS = "nnUNet_n_proc_DA"
FIND = (
    "from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name as find; "
    f"print(find('{TRAINER}').__module__)"
)


@dataclass(frozen=True)
class Finding:
    """One row: what was checked, what was found, and, if that would stop a training, the command that solves it."""

    what: str
    found: str
    mend: str = ""


def run(args: argparse.Namespace) -> int:
    console = plain_console()
    findings = [finding for look in LOOKS for finding in look()]
    table = Table("", "what", title="nnUNetv2_kd doctor")
    table.add_column("found", overflow="fold")
    for finding in findings:
        table.add_row("✗" if finding.mend else "✓", finding.what, Text(finding.found))
    console.print(table)
    broken = [finding for finding in findings if finding.mend]
    for finding in broken:
        console.print(f"{finding.what}: {finding.mend}", soft_wrap=True, markup=False, highlight=False)
    console.print(f"{len(broken)} would stop a training." if broken else "Nothing would stop a training.")
    return 1 if broken else 0


def versions() -> list[Finding]:
    findings = [Finding("Python", sys.version.split()[0])]
    for package in ("nnunetv2_kd", "nnunetv2", "torch", "dynamic_network_architectures", "batchgeneratorsv2"):
        version = importlib.metadata.version(package)
        mend = ""
        if package == "torch" and version.startswith("2.9."):
            mend = "nnU-Net 2.8 excludes torch 2.9: pip install 'torch>=2.5,!=2.9.*'"
        findings.append(Finding(package, version, mend))
    return findings


def found_trainer() -> list[Finding]:
    """Check in a fresh process, like nnUNetv2_train's."""
    if discovery.is_opted_out():
        how = f"switched off by {discovery.OPT_OUT}={os.environ[discovery.OPT_OUT]}"
    elif os.environ.get("TORCH_DEVICE_BACKEND_AUTOLOAD") == "0":
        how = "switched off by TORCH_DEVICE_BACKEND_AUTOLOAD=0"
    else:
        how = "automatic"
    result = subprocess.run([sys.executable, "-c", FIND], capture_output=True, text=True, cwd=tempfile.gettempdir())
    if result.returncode == 0:
        return [Finding("discovery", f"{how}; nnU-Net finds {TRAINER}")]
    last_line = (result.stderr.strip().splitlines() or ["no message"])[-1]
    mend = f'export {discovery.VARIABLE}="{discovery.STUB_FOLDER}"'
    if discovery.is_registered():
        mend = "pip install --force-reinstall --no-deps FOLDER_OF_THE_CLONE"
    return [Finding("discovery", f"{how}; nnU-Net does not find {TRAINER}: {last_line}", mend)]


def paths() -> list[Finding]:
    findings = []
    for variable in (nnUNet_raw, nnUNet_preprocessed, nnUNet_results):
        name = variable.env_var_name
        export = f"export {name}=/path/to/{name}"
        mistake = problem_of(name) if variable.is_set() else ""
        if mistake:
            findings.append(Finding(name, f"{mistake_in(str(variable))}: {variable}", export_line(name, str(variable))))
        elif name == "nnUNet_raw" and not (variable.is_set() and Path(variable).is_dir()):
            findings.append(Finding(name, f"does not exist; preprocessing needs it, training does not ({export})"))
        elif not variable.is_set():
            findings.append(Finding(name, "not set", export))
        elif not Path(variable).is_dir():
            findings.append(Finding(name, f"{variable} does not exist", f"mkdir -p {shlex.quote(str(variable))}"))
        elif name == "nnUNet_results" and why_not_writable(Path(variable)):
            findings.append(
                Finding(name, f"{variable} cannot be written to", f"chmod u+w {shlex.quote(str(variable))}")
            )
        else:
            findings.append(Finding(name, str(variable)))
    return findings


def data_workers() -> list[Finding]:
    """A value of 0 makes batches reproducible, but makes nnU-Net's planner fail; it stops no training."""
    set_to = os.environ.get(WORKERS, "")
    if set_to.strip() != "0":
        return []
    note = f"for trainings only: nnUNetv2_plan_experiment fails with it. Set it for each training, and: unset {WORKERS}"
    return [Finding(WORKERS, note)]


def device() -> list[Finding]:
    if torch.cuda.is_available():
        return [Finding("device", f"cuda: {torch.cuda.get_device_name(0)}")]
    faster = ", bfloat16 instructions: train with cpu_speed: measure" if cpu_has_bfloat16() else ""
    return [Finding("device", f"no CUDA; add -device cpu to nnUNetv2_train ({os.cpu_count()} cores{faster})")]


def options() -> list[Finding]:
    file = options_file()
    if file is None:
        return [Finding("options", f"{VARIABLE} not set: the trainers' defaults, or the plans' key 'kd'")]
    try:
        resolve_options({}, {}, file)
    except KDError as error:
        return [Finding("options", str(error), f"correct {file}, or: unset {VARIABLE}")]
    return [Finding("options", str(file))]


def trainers() -> list[Finding]:
    """The trainers that ``-tr`` can name."""
    names = ", ".join(trainer.__name__ for trainer in TRAINERS)
    suffixes = ", ".join(f"_{name}" for name in variant_names())
    return [
        Finding("trainers", names),
        Finding("on nnU-Net's variants", f"any of these trainers with one or several of {suffixes}, _<N>epochs"),
    ]


def teachers() -> list[Finding]:
    """Trained models per dataset. Having none stops nothing: a student cannot be trained yet, but a teacher can."""
    if not nnUNet_results.is_set() or not Path(nnUNet_results).is_dir():
        return []
    findings = []
    for dataset in sorted(Path(nnUNet_results).glob(DATASETS)):
        folds: dict[str, list[str]] = {}
        for model in checkpoints_of(dataset.name):
            if model.checkpoint_name == "checkpoint_final.pth":
                folds.setdefault(model.folder.name, []).append(str(model.fold))
        found = "; ".join(f"{name} (fold {', '.join(numbers)})" for name, numbers in folds.items())
        findings.append(Finding(f"models of {dataset.name}", found or "no training is finished"))
    return findings or [Finding("models", "none yet; train a teacher first: nnUNetv2_train DATASET CONFIGURATION FOLD")]


def methods() -> list[Finding]:
    """Distillation methods that an options file can name. One that cannot be loaded only stops trainings
    that use it."""
    others = [name for name in method_names() if name not in own_methods()]
    found = [Finding("methods", ", ".join(own_methods()))]
    for name in others:
        try:
            find_method(name)
        except KDError as error:
            found.append(Finding(f"method {name}", f"cannot be used: {error}"))
        else:
            found.append(Finding(f"method {name}", str(source_of(name))))
    return found


LOOKS: tuple[Callable[[], list[Finding]], ...] = (
    versions,
    found_trainer,
    paths,
    data_workers,
    device,
    options,
    trainers,
    methods,
    teachers,
)
