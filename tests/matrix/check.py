"""What one environment can do: run by its Python, in an empty folder. Uses nothing but what a user has installed.

Prints one line of JSON: the versions, and every step with ``ok`` or what went wrong.
"""

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

DATASET = "Dataset004_Hippocampus"
TRAINER = "nnUNetTrainerRegionKD"
MODEL = ("-d", "4", "-c", "3d_fullres", "-tr", TRAINER, "-f", "0")
BIN = Path(sys.executable).parent
CASES = 6
FOLDERS = {name: Path(name).absolute() for name in ("raw", "preprocessed", "results")}  # nnU-Net's


def run(*command: str) -> None:
    """A console script of this environment.

    Raises:
        RuntimeError: with the end of what it printed.
    """
    done = subprocess.run([str(BIN / command[0]), *command[1:]], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.returncode}\n{(done.stdout + done.stderr)[-3000:]}")


def installed() -> None:
    """Nothing is missing or of a version that another package refuses."""
    run("pip", "check")
    run("nnUNetv2_kd", "--version")


def found_by_nnunet(trainer: str) -> str:
    """The module in which nnU-Net finds a trainer; called in another process."""
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    try:
        return str(recursive_find_trainer_class_by_name(trainer).__module__)
    except RuntimeError:
        return "nowhere"


def discovery() -> None:
    """nnU-Net finds our trainer in a spawned child, and none that does not exist."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found, unknown = pool.map(found_by_nnunet, [TRAINER, "nnUNetTrainerNobody"])
    if not found.startswith("nnunetv2_kd") or unknown != "nowhere":
        raise RuntimeError(f"{TRAINER} is found in {found}, nnUNetTrainerNobody in {unknown}")


def preprocessed() -> None:
    """A few cases of the demo, and a network that trains in no time."""
    import nnunetv2_kd

    data, raw = Path(nnunetv2_kd.__file__).parent / "demo" / "data", FOLDERS["raw"] / DATASET
    cases = sorted(file.name.removesuffix(".nii.gz") for file in (data / "labelsTr").glob("*.nii.gz"))[:CASES]
    for part, end in (("imagesTr", "_0000.nii.gz"), ("labelsTr", ".nii.gz")):
        (raw / part).mkdir(parents=True)
        for case in cases:
            shutil.copyfile(data / part / f"{case}{end}", raw / part / f"{case}{end}")
    description = json.loads((data / "dataset.json").read_text()) | {"numTraining": CASES}
    (raw / "dataset.json").write_text(json.dumps(description))
    run("nnUNetv2_plan_and_preprocess", "-d", "4", "--no_pp", "-npfp", "1")
    plans_file = FOLDERS["preprocessed"] / DATASET / "nnUNetPlans.json"
    plans = json.loads(plans_file.read_text())
    configuration = plans["configurations"]["3d_fullres"]
    configuration |= {"patch_size": [16, 24, 16], "batch_size": 2}
    network = configuration["architecture"]["arch_kwargs"]
    network["features_per_stage"] = [4, 8, 16, 16, 16, 16][: network["n_stages"]]
    plans_file.write_text(json.dumps(plans))
    run("nnUNetv2_preprocess", "-d", "4", "-c", "3d_fullres", "-np", "1")


def training() -> None:
    """A stock teacher, and a student of it."""
    run("nnUNetv2_train", "4", "3d_fullres", "0", "-tr", "nnUNetTrainer_1epoch", "-device", "cpu")
    options = Path("options.yaml")
    options.write_text(
        "{teacher: {trainer: nnUNetTrainer_1epoch}, epochs: 2, iterations_per_epoch: 5, val_iterations_per_epoch: 2}"
    )
    os.environ |= {"nnUNet_kd_config": str(options.absolute())}
    run("nnUNetv2_train", "4", "3d_fullres", "0", "-tr", TRAINER, "-device", "cpu")


def prediction() -> None:
    """nnU-Net's own command, with the student."""
    images = FOLDERS["raw"] / DATASET / "imagesTr"
    few = Path("images")
    few.mkdir()
    for image in sorted(images.iterdir())[:2]:
        shutil.copyfile(image, few / image.name)
    run("nnUNetv2_predict", *MODEL, "-i", "images", "-o", "out", "-device", "cpu", "-npp", "1", "-nps", "1")
    written = {file.name for file in Path("out").glob("*.nii.gz")}
    expected = {file.name.replace("_0000", "") for file in few.iterdir()}
    if written != expected:
        raise RuntimeError(f"expected {expected}, found {written}")


STEPS: dict[str, Callable[[], None]] = {
    "install": installed,
    "discovery": discovery,
    "preprocessing": preprocessed,
    "training": training,
    "prediction": prediction,
}


def main() -> None:
    os.environ |= {f"nnUNet_{name}": str(folder) for name, folder in FOLDERS.items()}
    os.environ |= {"nnUNet_n_proc_DA": "1", "OMP_NUM_THREADS": "1", "nnUNet_compile": "false"}
    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    found |= {name: version(name) for name in ("torch", "nnunetv2", "numpy", "nnunetv2_kd")}
    for name, step in STEPS.items():
        try:
            step()
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}"
            break
        found[name] = "ok"
    print(json.dumps(found))


if __name__ == "__main__":
    main()
