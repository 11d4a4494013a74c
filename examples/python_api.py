# %% [markdown]
# # Distillation in Python, without nnU-Net's commands
#
# The bundled hippocampus model teaches a student with a quarter of its parameters: load the teacher, make a smaller
# student, look at three terms on a batch, train ten steps, and export the student. Ten steps show how it works; they do
# not make a useful model.

# %%
import tempfile
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch
from batchgenerators.utilities.file_and_folder_operations import load_json
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss

import nnunetv2_kd
from nnunetv2_kd.config import TeacherOptions
from nnunetv2_kd.distillation import Distillation
from nnunetv2_kd.inference.convert import write_onnx
from nnunetv2_kd.methods.registry import read_methods
from nnunetv2_kd.networks.build import build_network
from nnunetv2_kd.networks.cost import count_params
from nnunetv2_kd.regions import Labels
from nnunetv2_kd.students.shrink import shrink_plans
from nnunetv2_kd.teachers.find import StudentIdentity, find_teacher
from nnunetv2_kd.teachers.load import load_teacher

torch.manual_seed(0)
demo = Path(nnunetv2_kd.__file__).parent / "demo"

# %% [markdown]
# ## The teacher
#
# It may be any nnU-Net model folder, or a zip from `nnUNetv2_export_model_to_zip`.

# %%
options = TeacherOptions(folder=demo / "teacher" / "teacher.zip", fold="all")
student_of = StudentIdentity("Dataset004_Hippocampus", "nnUNetPlans", "3d_fullres", 0)
model = find_teacher(options, student_of).folder
plans, dataset_json = load_json(model / "plans.json"), load_json(model / "dataset.json")
teacher = load_teacher(options, student_of, plans, dataset_json, [], deep_supervision=False)
[record] = teacher.records()
print(f"{record.trainer}, fold {record.fold}, {record.epoch} epochs, SHA-256 {record.sha256[:12]}")

# %% [markdown]
# ## A smaller student
#
# It has the same plans with half the channels. nnU-Net itself builds the network.

# %%
smaller = shrink_plans(plans, {"3d_fullres": 0.5})
student = build_network(smaller, "3d_fullres", dataset_json, "nnUNetTrainer", deep_supervision=False)
print(f"teacher {count_params(teacher.network):,} parameters, student {count_params(student):,}")

# %% [markdown]
# ## A batch
#
# Two bundled cases, normalised as in nnU-Net and cut to 24 x 32 x 24 voxels. In a training, such batches come from
# nnU-Net's data loaders: `data` is `(B, C, *S)`, `target` is `(B, 1, *S)`.

# %%
PATCH = (24, 32, 24)


def read(folder: str, file: str) -> torch.Tensor:
    """An image or a label map, cut or padded with zeros to the patch."""
    array = sitk.GetArrayFromImage(sitk.ReadImage(str(demo / "data" / folder / file))).astype(np.float32)
    if folder == "imagesTr":
        array = (array - array.mean()) / array.std()
    missing = [side - size for side, size in zip(PATCH, array.shape, strict=True)]
    return torch.nn.functional.pad(torch.from_numpy(array), (0, missing[2], 0, missing[1], 0, missing[0]))[None]


cases = sorted(file.name.removesuffix(".nii.gz") for file in (demo / "data" / "labelsTr").glob("*.nii.gz"))[:2]
data = torch.stack([read("imagesTr", f"{case}_0000.nii.gz") for case in cases])
target = torch.stack([read("labelsTr", f"{case}.nii.gz") for case in cases])
batch = {"data": data, "target": target}

# %% [markdown]
# ## Three terms
#
# nnU-Net's own loss, and the terms of three methods. Outside of `distilling`, the loss is nnU-Net's alone.

# %%
terms = read_methods({"region_kl": {}, "channel_wise": {"temperature": 4.0}, "region_affinity": {"weight": 0.5}})
segmentation = DC_and_CE_loss({"batch_dice": False, "smooth": 1e-5, "do_bg": False}, {})
labels = Labels(num_heads=3, has_regions=False, ignore_label=None)
distillation = Distillation(student, teacher, terms, labels, segmentation)

print(f"nnU-Net's loss: {distillation.loss(student(data), target).item():.3f}")
with distillation.loss.distilling(teacher(batch)):
    total = distillation.loss(student(data), target)
print(f"with the terms: {total.item():.3f}")
print({name: round(float(value), 4) for name, value in distillation.loss.values.items()})

# %% [markdown]
# ## Ten steps

# %%
parameters = [*student.parameters(), *distillation.trained_parts.parameters()]
optimizer = torch.optim.AdamW(parameters, lr=0.01)
student.train()
for step in range(10):
    optimizer.zero_grad()
    with distillation.loss.distilling(teacher(batch)):
        total = distillation.loss(student(data), target)
    total.backward()
    torch.nn.utils.clip_grad_norm_(parameters, 12)
    optimizer.step()
    print(f"step {step}: {total.item():.3f}")

# %% [markdown]
# ## Export
#
# To ONNX, with a fixed patch size. For students that a trainer made, use `nnUNetv2_kd export`, which also checks
# that it predicts the same voxels.

# %%
file = write_onnx(student.eval(), data.shape, Path(tempfile.mkdtemp()))
print(f"{file.name}: {file.stat().st_size / 2**20:.1f} MiB")
