"""Small U-Nets as nnU-Net builds them, and plans to build them from."""

import json
from copy import deepcopy
from typing import Any

from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from torch import nn

PLAIN = "dynamic_network_architectures.architectures.unet.PlainConvUNet"
RESIDUAL = "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet"
DATASET_JSON = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "a": 1, "b": 2}, "file_ending": ".nii.gz"}


def architecture(
    dims: int = 3,
    features: tuple[int, ...] = (8, 16, 32),
    strides: Any = None,
    residual: bool = False,
    blocks: int = 2,
) -> dict[str, Any]:
    stages = len(features)
    kwargs = {
        "n_stages": stages,
        "features_per_stage": list(features),
        "conv_op": f"torch.nn.modules.conv.Conv{dims}d",
        "kernel_sizes": [[3] * dims] * stages,
        "strides": strides or [[1] * dims] + [[2] * dims] * (stages - 1),
        "n_blocks_per_stage" if residual else "n_conv_per_stage": [blocks] * stages,
        "n_conv_per_stage_decoder": [blocks] * (stages - 1),
        "conv_bias": True,
        "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dims}d",
        "norm_op_kwargs": {"eps": 1e-05, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    imported = ["conv_op", "norm_op", "dropout_op", "nonlin"]
    return {
        "network_class_name": RESIDUAL if residual else PLAIN,
        "arch_kwargs": kwargs,
        "_kw_requires_import": imported,
    }


def network(deep_supervision: bool = True, classes: int = 3, **kwargs: Any) -> nn.Module:
    arch = architecture(**kwargs)
    return get_network_from_plans(
        arch["network_class_name"],
        arch["arch_kwargs"],
        arch["_kw_requires_import"],
        1,
        classes,
        deep_supervision=deep_supervision,
    )


def plans(name: str = "nnUNetPlans", **kwargs: Any) -> dict[str, Any]:
    """Plans with a 3d and a 2d configuration, and one that inherits, as nnU-Net writes them."""
    common = {
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [False],
        "batch_dice": False,
    }
    three = {"data_identifier": "nnUNetPlans_3d_fullres", "patch_size": [16, 16, 16], "spacing": [1.0, 1.0, 1.0]}
    two = {"data_identifier": "nnUNetPlans_2d", "patch_size": [16, 16], "spacing": [1.0, 1.0]}
    whole = {
        "dataset_name": "Dataset999_Test",
        "plans_name": name,
        "transpose_forward": [0, 1, 2],
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": {"mean": 1.0, "std": 2.0}},
        "configurations": {
            "2d": {**common, **two, "architecture": architecture(2)},
            "3d_fullres": {**common, **three, "architecture": architecture(3, **kwargs)},
            "3d_fullres_bs4": {"inherits_from": "3d_fullres", "batch_size": 4},
        },
    }
    return deepcopy(json.loads(json.dumps(whole)))
