"""Distillation without augmentation, for stored.yaml: both teachers see what the student sees."""

from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerNoDA import nnUNetTrainerNoDA

from nnunetv2_kd.trainers import DistillationMixin, nnUNetTrainerRegionKD


class NoDARegionKD(DistillationMixin, nnUNetTrainerNoDA):
    default_options = nnUNetTrainerRegionKD.default_options
