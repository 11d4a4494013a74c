"""The only module that nnU-Net imports from our folder in nnUNet_extTrainer. It passes names on to our trainers, and
makes nnU-Net's command end with a reason if it fails. nnU-Net drops every module of this folder from sys.modules after
the search, so no class may be defined here."""

from typing import Any

from nnunetv2_kd import trainers
from nnunetv2_kd.trainers import error_exit

error_exit.install_exit_messages()  # needed this early to explain a trainer name that does not exist


def __getattr__(name: str) -> Any:
    return getattr(trainers, name)
