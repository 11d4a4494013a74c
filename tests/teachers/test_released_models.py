"""Models as others publish them: without their trainer, optimizer or log, moved, renamed, zipped, not U-Nets."""

import json
import shutil
import zipfile
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from dynamic_network_architectures.architectures.primus import Primus
from torch import nn

from nnunetv2_kd.config import TeacherOptions
from nnunetv2_kd.distillation import Distillation
from nnunetv2_kd.errors import KDError
from nnunetv2_kd.methods.registry import read_methods
from nnunetv2_kd.networks.cost import network_cost
from nnunetv2_kd.nnunet.model_zip import unpack
from nnunetv2_kd.regions import Labels
from nnunetv2_kd.teachers.check import check_patch
from nnunetv2_kd.teachers.find import StudentIdentity
from nnunetv2_kd.teachers.load import load_teacher
from nnunetv2_kd.teachers.running import RunningTeacher
from tests.small_networks import DATASET_JSON, network, plans

NAME = "nnUNetTrainer__nnUNetPlans__3d_fullres"
STUDENT = StudentIdentity("Dataset999_Test", "nnUNetPlans", "3d_fullres", 0)
FEATURES = (4, 8)


@pytest.fixture
def released(tmp_path, monkeypatch):
    """A model folder with nothing but what nnU-Net needs to predict."""
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "preprocessed"))
    return make_model(tmp_path / "downloads" / "Dataset123_Other" / NAME)


def make_model(folder: Path, fold="0", file="checkpoint_final.pth", trainer="nnUNetTrainer", features=FEATURES) -> Path:
    (folder / f"fold_{fold}").mkdir(parents=True, exist_ok=True)
    made = plans(features=features)
    (folder / "plans.json").write_text(json.dumps(made))
    (folder / "dataset.json").write_text(json.dumps(DATASET_JSON))
    checkpoint = {
        "network_weights": network(features=features).state_dict(),
        "init_args": {"configuration": "3d_fullres", "fold": fold},
        "trainer_name": trainer,
    }
    torch.save(checkpoint, folder / f"fold_{fold}" / file)
    return folder


def load(folder, **options):
    student = plans(features=(2, 4))
    return load_teacher(TeacherOptions(folder=folder, **options), STUDENT, student, DATASET_JSON, [], True)


def test_without_optimizer_log_or_epoch(released):
    teacher = load(released)
    assert teacher.record.epoch is None
    assert "for an unknown number of epochs" in str(teacher.record)
    assert len(teacher.run(torch.randn(1, 1, 16, 16, 16)).logits) == 1


def test_heads_that_never_learned_are_reported_without_an_optimizer(released):
    """nnU-Net initialises biases with 0."""
    file = released / "fold_0" / "checkpoint_final.pth"
    checkpoint = torch.load(file)
    heads = sorted(key for key in checkpoint["network_weights"] if "seg_layers" in key and key.endswith("bias"))
    assert all(not checkpoint["network_weights"][key].any() for key in heads)
    whole = make_model(released.with_name("deeper"), features=(4, 8, 8))
    assert load(whole).trained_heads == [True, False]
    file = whole / "fold_0" / "checkpoint_final.pth"
    checkpoint = torch.load(file)
    for key, value in checkpoint["network_weights"].items():
        if "seg_layers" in key and key.endswith("bias"):
            value += 0.1
    torch.save(checkpoint, file)
    assert load(whole).trained_heads == [True, True]


def test_a_trainer_that_is_not_here(released):
    make_model(released, trainer="nnUNetTrainerOfSomebody")
    lines = load(released).describe()
    assert sum("OfSomebody is not installed: its network is built from its plans" in line for line in lines) == 1


def test_a_trainer_that_is_not_here_and_builds_something_else(released):
    file = make_model(released, trainer="nnUNetTrainerOfSomebody") / "fold_0" / "checkpoint_final.pth"
    torch.save(torch.load(file) | {"network_weights": network(features=(4, 16)).state_dict()}, file)
    with pytest.raises(
        KDError, match=r"(?s)do not fit the network of its plans.*OfSomebody is not installed.*nnUNet_extTrainer"
    ):
        load(released)


def test_a_renamed_folder_of_fold_all_and_its_best_checkpoint(released):
    moved = make_model(released, "all", "checkpoint_best.pth").rename(released.with_name("liver model"))
    record = load(moved, fold="all", checkpoint="checkpoint_best.pth").record
    assert (record.folder, record.fold, record.checkpoint) == (str(moved), "all", "checkpoint_best.pth")


def test_what_a_folder_holds_instead(released):
    with pytest.raises(KDError, match=r"(?s)fold_3/.* does not exist.*after the folder.*\{fold: 0, checkpoint: ch"):
        load(released, fold=3)
    with pytest.raises(KDError, match=rf"Name the model's folder.*folder: '{released}'"):
        load(released / "fold_0")
    with pytest.raises(KDError, match=rf"(?s)Name one of the models in it.*folder: '{released}'"):
        load(released.parent)
    with pytest.raises(KDError, match="is not a model folder of nnU-Net"):
        load(released.parents[2])


def zipped(folder, *others):
    file = folder.parents[1] / "model.zip"
    with zipfile.ZipFile(file, "w") as archive:
        for model in (folder, *others):
            for path in sorted(model.rglob("*")):
                archive.write(path, path.relative_to(folder.parents[1]))
    return file


def test_a_zip(released):
    make_model(released, "all")
    (released / "fold_all" / "progress.png").write_bytes(b"")
    file = zipped(released)
    shutil.rmtree(released)
    record = load(file, fold="all").record
    assert record.folder == str(file)
    path = unpack(file, "3d_fullres", "all", "checkpoint_final.pth")
    assert path.place_in_archive == f"Dataset123_Other/{NAME}"
    assert sorted(f.name for f in path.folder.iterdir()) == ["dataset.json", "fold_all", "plans.json"]
    with pytest.raises(
        KDError, match=r"(?s)no checkpoint_final.pth of fold 3.*\{fold: 0, checkpoint: checkpoint_final.pth\}"
    ):
        load(file, fold=3)


def test_a_zip_of_several_models(released):
    other = make_model(released.with_name("nnUNetTrainer__nnUNetPlans__3d_lowres"))
    picked = unpack(zipped(released, other), "3d_fullres", 0, "checkpoint_final.pth")
    assert picked.place_in_archive == f"Dataset123_Other/{NAME}"
    third = make_model(released.with_name("nnUNetTrainer__Mine__3d_fullres"))
    with pytest.raises(KDError, match=r"(?s)holds 2 models of configuration 3d_fullres among:.*Mine__3d.*Unpack it"):
        load(zipped(released, other, third))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut short"])
def test_files_that_are_no_zip(tmp_path, content):
    file = tmp_path / "model.zip"
    file.write_bytes(content)
    with pytest.raises(KDError, match="model.zip cannot be unpacked"):
        load(file)
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("readme.txt", "nothing")
    with pytest.raises(KDError, match="holds no model"):
        load(file.rename(tmp_path / "other.zip"))


def test_plans_of_before_nnunet_2_2(released):
    file = released / "plans.json"
    old = json.loads(file.read_text())
    for configuration in old["configurations"].values():
        if "architecture" in configuration:
            kwargs = configuration.pop("architecture")["arch_kwargs"]
            configuration |= {
                "UNet_class_name": "PlainConvUNet",
                "UNet_base_num_features": kwargs["features_per_stage"][0],
                "unet_max_num_features": 320,
                "n_conv_per_stage_encoder": kwargs["n_conv_per_stage"],
                "n_conv_per_stage_decoder": kwargs["n_conv_per_stage_decoder"],
                "num_pool_per_axis": [1, 1, 1],
                "pool_op_kernel_sizes": kwargs["strides"],
                "conv_kernel_sizes": kwargs["kernel_sizes"],
            }
    file.write_text(json.dumps(old))
    assert load(released).record.params > 0


# ---- not U-Nets


@pytest.fixture
def transformer():
    torch.manual_seed(0)
    return Primus(1, 36, (8, 8, 8), 3, eva_depth=1, eva_numheads=2, input_shape=(16, 16, 16))


class CrossEntropy(nn.CrossEntropyLoss):
    """On nnU-Net's targets."""

    def forward(self, logits, target):
        return super().forward(logits, target[:, 0].long())


def distillation(teacher, **terms):
    return Distillation(network(), RunningTeacher(teacher), read_methods(terms), Labels(3, False, None), CrossEntropy())


def test_a_transformer_teaches_by_its_logits(transformer):
    made = distillation(transformer, voxel_kl={}, region_kl={})
    data, target = torch.randn(1, 1, 16, 16, 16), torch.randint(0, 3, (1, 1, 16, 16, 16)).float()
    output = made.teacher({"data": data})
    student = network(deep_supervision=False)
    with made.loss.distilling(output):
        made.loss(student(data), target).backward()
    assert all(float(value) > 0 for value in made.loss.values.values())


def test_a_transformer_has_no_stages(transformer):
    with pytest.raises(KDError, match="Primus has none. Use terms on logits only"):
        distillation(transformer, region_affinity={"stages": ["encoder.1"]})


def test_a_transformer_runs_on_patches_of_its_own_size_only(transformer):
    check_patch(transformer, [16, 16, 16], [16, 16, 16])
    check_patch(network(), [16, 16, 16], [32, 16, 16])
    with pytest.raises(KDError, match=r"a Primus, which only runs on patches.*\[16, 16, 16\].*\[32, 16, 16\]"):
        check_patch(transformer, [16, 16, 16], [32, 16, 16])
    assert deepcopy(transformer)(torch.randn(1, 1, 16, 16, 16)).shape == (1, 3, 16, 16, 16)


def test_the_leaderboard_counts_the_network_of_the_trainer():
    """And not the U-Net that the plans describe."""
    cost = network_cost(plans(), "3d_fullres", DATASET_JSON, "nnUNet_Primus_S_Trainer")
    of_plans = network_cost(plans(), "3d_fullres", DATASET_JSON, "nnUNetTrainerOfSomebody")
    assert cost.params > 20 * of_plans.params
    assert cost.flops > 0
    assert of_plans == network_cost(plans(), "3d_fullres", DATASET_JSON)
