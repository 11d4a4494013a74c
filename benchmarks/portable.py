"""A CT of 512x512x400 voxels and a model of 105 classes, to see what a portable folder needs of a machine.

    python benchmarks/portable.py FOLDER [--spacing 1.5] [--slices 400] [--mirroring]
    /usr/bin/time -v python FOLDER/predict.py -i FOLDER/images -o FOLDER/found --profile

The network has few channels and random weights, and the folder was not tested: what is measured is everything
around the network. Patch and classes are TotalSegmentator's, whose models see 1.5 or 3 mm and are not mirrored.
"""

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813
import torch
from deploy import dataset_json_of, plans_of
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_kd.inference.convert import ONNX_FILE, write_onnx
from nnunetv2_kd.networks.build import build_network
from nnunetv2_kd.nnunet.files import sha256
from nnunetv2_kd.portable.describe import describe_model
from nnunetv2_kd.portable.write import FILES, RUNNER
from nnunetv2_kd.runner.model import MODEL_FILE, SUMS_FILE

CLASSES, PATCH = 105, 128
VOXELS = (1.25, 0.8, 0.8)  # mm
CHANNELS = [2, 4, 4]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--spacing", type=float, default=1.5)
    parser.add_argument("--slices", type=int, default=400)
    parser.add_argument("--mirroring", action="store_true")
    args = parser.parse_args()
    write_folder(args.folder, args.spacing, args.mirroring)
    write_image(args.folder / "images" / "ct_0000.nii.gz", args.slices)


def write_image(file: Path, slices: int) -> None:
    """Ellipsoids of several intensities in a body, with some noise, int16."""
    rng = np.random.default_rng(0)
    image = np.full((slices, 512, 512), -1000, dtype=np.int16)
    z, y, x = np.ogrid[-1 : 1 : slices * 1j, -1:1:512j, -1:1:512j]
    image[np.broadcast_to((y / 0.7) ** 2 + (x / 0.9) ** 2 < 1, image.shape)] = 0
    for _ in range(60):
        middle, size = rng.uniform(-0.6, 0.6, 3), rng.uniform(0.05, 0.3, 3)
        inside = sum(((axis - m) / s) ** 2 for axis, m, s in zip((z, y, x), middle, size, strict=True)) < 1
        image[inside] = rng.integers(-200, 600)
    for slice_ in image:
        slice_ += rng.normal(0, 10, slice_.shape).astype(np.int16)
    written = sitk.GetImageFromArray(image)
    written.SetSpacing(VOXELS[::-1])
    file.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(written, str(file), True)


def write_folder(folder: Path, spacing: float, mirroring: bool) -> None:
    """Write a folder like an export's, without test image and comparison."""
    plans, dataset_json = plans_of([PATCH] * 3, CHANNELS, [spacing] * 3, convs=1), dataset_json_of(CLASSES)
    torch.manual_seed(0)
    network = build_network(plans, "it", dataset_json, "nnUNetTrainer", deep_supervision=False)
    manager = PlansManager(plans)
    predictor = nnUNetPredictor(device=torch.device("cpu"))
    axes = (0, 1, 2) if mirroring else None
    configuration_manager = manager.get_configuration("it")
    predictor.manual_initialization(
        network, manager, configuration_manager, [network.state_dict()], dataset_json, "nnUNetTrainer", axes
    )
    shutil.copytree(RUNNER, folder / "runner", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copyfile(FILES / "predict.py.txt", folder / "predict.py")
    (folder / "networks").mkdir()
    write_onnx(network.eval(), (1, 1, *[PATCH] * 3), folder / "networks")
    content = describe_model([predictor], [[f"networks/{ONNX_FILE}"]])
    (folder / MODEL_FILE).write_text(json.dumps(content))
    names = [file.relative_to(folder) for file in sorted(folder.rglob("*")) if file.is_file()]
    (folder / SUMS_FILE).write_text("".join(f"{sha256(folder / name)}  {name.as_posix()}\n" for name in names))


if __name__ == "__main__":
    main()
