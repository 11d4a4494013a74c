"""Check before a training that the preprocessed data have the cases that a fold names."""

from pathlib import Path

from nnunetv2_kd.errors import KDError, listing
from nnunetv2_kd.nnunet.datasets import dataset_id
from nnunetv2_kd.nnunet.files import why_not_writable
from nnunetv2_kd.nnunet.model_files import printable
from nnunetv2_kd.nnunet.model_folder import ALL, Fold
from nnunetv2_kd.nnunet.splits import MEND, SPLITS, read_splits, too_few_cases

SHOWN = 5


def preprocess_line(dataset_name: str, plans_name: str, configuration: str) -> str:
    """The command that makes a configuration's preprocessed cases."""
    plans = "" if plans_name == "nnUNetPlans" else f" -plans_name {plans_name}"
    return f"nnUNetv2_preprocess -d {dataset_id(dataset_name)}{plans} -c {configuration}"


def preprocessed_cases(data: Path) -> list[str]:
    """Names of the cases in a folder of preprocessed data, sorted; empty if there is no such folder."""
    names = {file.name.removesuffix(end) for end in (".b2nd", ".npz") for file in data.glob(f"*{end}")}
    return sorted(name for name in names if not name.endswith("_seg") and (data / f"{name}.pkl").is_file())


def check_fold_data(data: Path, fold: Fold, ending: str, line: str) -> None:
    """Check that there are preprocessed cases, and that the fold's training and validation cases are among them.

    Args:
        data: ``<nnUNet_preprocessed>/<dataset>/<data_identifier>``.
        fold: the fold to train.
        ending: of the dataset's raw files, which people sometimes leave in the names of cases.
        line: the command that preprocesses, see `preprocess_line`.

    Raises:
        KDError: says what is missing, and what to type.
    """
    there = preprocessed_cases(data)
    if not there:
        raise KDError(f"{data} holds no preprocessed cases. Preprocess them: {line}")
    if fold == ALL:
        return
    file = data.parent / SPLITS
    if not file.is_file():
        if len(there) < 5:
            raise KDError(too_few_cases(data.parent, len(there)))
        problem = why_not_writable(data.parent)
        if problem:
            raise KDError(
                f"{file} does not exist, and nnU-Net cannot write it: {problem}. Make the folder writable: chmod u+w "
                f"'{data.parent}'"
            )
        return
    splits = read_splits(data.parent)
    if int(fold) >= len(splits):  # nnU-Net then draws cases at random
        return
    split = splits[int(fold)]
    for key, what in (("train", "training"), ("val", "validation")):
        if not split[key]:
            raise KDError(f"Fold {fold} of {file} has no {what} cases. Add some there, or train another fold. {MEND}")
    missing = [case for case in dict.fromkeys([*split["train"], *split["val"]]) if case not in set(there)]
    if missing:
        raise KDError(_missing(file, fold, data, missing, ending, line))


def _missing(file: Path, fold: Fold, data: Path, missing: list[str], ending: str, line: str) -> str:
    lines = [printable(case) for case in missing[:SHOWN]]
    lines += [f"and {len(missing) - SHOWN} more"] if len(missing) > SHOWN else []
    title = listing(f"Fold {fold} of {file} names {len(missing)} cases that are not in {data}:", lines)
    if all(case.endswith(ending) for case in missing):
        return f"{title}\nNames of cases have no {ending}: remove it there. {MEND}"
    return f"{title}\nPreprocess them: {line}\nOr remove from that file the cases that no longer exist. {MEND}"
