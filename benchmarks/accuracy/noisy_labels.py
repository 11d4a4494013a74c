"""Make the dataset of noisy_labels.yaml: hippocampus, a tenth of whose training cases have wrong labels.

Of fold 0's training cases every tenth is damaged, chosen by a seed: in one half of these a structure is missing, in the
other half a structure is two voxels too thick on every side. Validation cases keep their labels. Run prepare.py first.

    python benchmarks/accuracy/noisy_labels.py
"""

import json
import shutil
from pathlib import Path

import numpy as np
import SimpleITK
from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw
from prepare import DATASETS, derived_dataset
from scipy.ndimage import binary_dilation

NAME = "Dataset909_HippoNoisy"
SHARE = 0.1
STRUCTURES = (1, 2)


def damaged(labels: np.ndarray, structure: int, missing: bool) -> np.ndarray:
    """Labels ``(Z, Y, X)`` without a structure, or with that structure two voxels thicker."""
    changed = labels.copy()
    if missing:
        changed[labels == structure] = 0
    else:
        changed[binary_dilation(labels == structure, iterations=2) & (labels == 0)] = structure
    return changed


def main() -> None:
    original, raw, preprocessed = DATASETS["4"]["name"], Path(str(nnUNet_raw)), Path(str(nnUNet_preprocessed))
    before, after = preprocessed / original, preprocessed / NAME
    shutil.copytree(raw / original, raw / NAME, dirs_exist_ok=True)
    splits = json.loads((before / "splits_final.json").read_text())[:1]
    train, random = splits[0]["train"], np.random.RandomState(3)
    chosen = random.choice(train, round(SHARE * len(train)), replace=False)
    for number, case in enumerate(chosen):
        source = raw / original / "labelsTr" / f"{case}.nii.gz"
        image = SimpleITK.ReadImage(str(source))
        labels = damaged(SimpleITK.GetArrayFromImage(image), int(random.choice(STRUCTURES)), missing=number % 2 == 0)
        result = SimpleITK.GetImageFromArray(labels)
        result.CopyInformation(image)
        SimpleITK.WriteImage(result, str(raw / NAME / "labelsTr" / source.name))
    print(f"{len(chosen)} of {len(train)} training cases have wrong labels: {', '.join(sorted(chosen))}")
    after.mkdir(exist_ok=True)
    shutil.copyfile(before / "dataset.json", after / "dataset.json")
    (after / "splits_final.json").write_text(json.dumps(splits))
    derived_dataset(NAME, ["nnUNetPlansS16"])


if __name__ == "__main__":
    main()
