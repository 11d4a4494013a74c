"""Our trainers on nnU-Net's other trainers."""

import json

import pytest
from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerDA5 import nnUNetTrainerDA5
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

from nnunetv2_kd import trainers
from nnunetv2_kd.cli.doctor import trainers as listed
from nnunetv2_kd.trainers.checkpoint import base_trainers, stock_name
from nnunetv2_kd.trainers.provenance import make_record
from nnunetv2_kd.trainers.variants import GROUPS, compose, split_name, variant_names
from tests.trainers.helpers import log_of, make_trainer


def composed(name):
    return compose(name, trainers.TRAINERS, "here")


@pytest.mark.parametrize("variant", variant_names())
def test_every_variant(variant):
    trainer = composed(f"nnUNetTrainerRegionKD_{variant}")
    assert issubclass(trainer, trainers.nnUNetTrainerRegionKD)
    assert base_trainers(trainer) == [
        path.split(".")[-1] for g in GROUPS.values() for n, path in g.items() if n == variant
    ]
    assert stock_name(trainer) == "nnUNetTrainer"


def test_several_variants_in_any_order():
    for name in ("nnUNetTrainerKD_DA5_NoMirroring_7epochs", "nnUNetTrainerKD_7epochs_NoMirroring_DA5"):
        assert base_trainers(composed(name)) == ["nnUNetTrainerNoMirroring", "nnUNetTrainerDA5"]
    assert split_name("nnUNetTrainerKD_DiceCELoss_noSmooth_1epoch") == (
        "nnUNetTrainerKD",
        {"DiceCELoss_noSmooth", "1epoch"},
    )


@pytest.mark.parametrize(
    "suffix", ["", "_DA5_NoDA", "_CELoss_DiceLoss", "_Adam", "_DA5_Mine", "_5epochs_6epochs", "_BN", "_0epochs", "DA5"]
)
def test_names_that_are_none(suffix):
    assert composed(f"nnUNetTrainerKD{suffix}") is None
    assert composed(f"nnUNetTrainerOther{suffix}") is None


def test_nnunet_finds_them():
    found = recursive_find_trainer_class_by_name("nnUNetTrainerRegionKD_DA5_250epochs")
    assert issubclass(found, nnUNetTrainerDA5)
    assert found is trainers.nnUNetTrainerRegionKD_DA5_250epochs


def test_doctor_lists_them():
    text = "\n".join(finding.found for finding in listed())
    assert "nnUNetTrainerRegionKD" in text
    assert "_NoMirroring" in text


def test_a_training(here):
    trainer = make_trainer(composed("nnUNetTrainerRegionKD_DA5_NoMirroring_NoDeepSupervision_1epoch"), here)
    trainer.run_training()
    assert "distillation: region_kl" in log_of(trainer)
    assert trainer.current_epoch == 1
    assert trainer.inference_allowed_mirroring_axes is None
    record = make_record(trainer)
    assert (
        record.training.augmentation
        == "of nnUNetTrainerNoMirroring and nnUNetTrainerNoDeepSupervision and nnUNetTrainerDA5"
    )
    assert json.dumps(record.as_dict())
    assert not trainer.enable_deep_supervision
