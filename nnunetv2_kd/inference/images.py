"""Images in a folder, in nnU-Net's naming."""

from pathlib import Path

from nnunetv2.utilities.utils import get_identifiers_from_splitted_dataset_folder

from nnunetv2_kd.errors import KDError


def cases_in(folder: Path, ending: str) -> list[str]:
    """The cases of a folder with ``CASE_0000.nii.gz`` and so on, sorted.

    Raises:
        KDError: where it is no folder or holds no image.
    """
    if not folder.is_dir():
        raise KDError(f"-i {folder} is no folder.")
    cases = [str(case) for case in get_identifiers_from_splitted_dataset_folder(str(folder), ending) if case]
    if not cases:
        raise KDError(f"-i {folder} holds no image named CASE_0000{ending}, as the models of this dataset expect.")
    return cases
