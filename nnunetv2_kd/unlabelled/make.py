"""Make a dataset in nnU-Net's raw format from scans and teachers.

Labelling scans with a larger or earlier model and training on both is self-training (Noisy Student, arXiv 1911.04252).
A small network trained on a large nnU-Net's labels, without scans whose labels were unstable, won FLARE22
(doi 10.1007/978-3-031-23911-3_16). Giving single voxels nnU-Net's ignore label is ours.
"""

import errno
import shutil
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from tqdm import tqdm

from nnunetv2_kd.errors import KDError, listing
from nnunetv2_kd.nnunet.locks import lock_folder
from nnunetv2_kd.nnunet.model_files import read_dataset_json
from nnunetv2_kd.nnunet.plans import Plans
from nnunetv2_kd.nnunet.splits import SPLITS
from nnunetv2_kd.nnunet.teacher_labels import KEY, labelling_teachers, labels_without_ignore, teacher_labelled
from nnunetv2_kd.teachers.check import channels, check_same_task
from nnunetv2_kd.teachers.label_map import Structures, structures_of
from nnunetv2_kd.unlabelled.labelled import NOBODY, Labelled, joined_splits, read_labelled
from nnunetv2_kd.unlabelled.labellers import (
    Labeller,
    Models,
    channel_problems,
    find_labellers,
    label_problems,
    same_reader_problems,
    teachers_as_dicts,
)
from nnunetv2_kd.unlabelled.output import PROGRESS, Output, output_name, unset_variables, write_preprocessed
from nnunetv2_kd.unlabelled.pseudo_labels import Mean, Member, PseudoLabels, Rules, as_segmentation, pseudo_labels
from nnunetv2_kd.unlabelled.scans import Scan, check_scans, find_scans

STUDENT_KEYS = ("kd", "kd_student")  # removed from the new plans, which count as not shrunken


@dataclass(frozen=True)
class Request:
    """The flags of ``nnUNetv2_kd unlabelled``.

    Attributes:
        dataset: the labelled dataset's folder under ``nnUNet_raw``; None if there is none.
        scans: the folder with the scans.
        output: number or name of the dataset to make.
        copy: copy images instead of linking them.
        command: the command that goes on after an interruption.
    """

    dataset: Path | None
    scans: Path
    output: str
    models: Models
    rules: Rules
    copy: bool
    command: str


@dataclass(frozen=True)
class MadeDataset:
    """The dataset that was made.

    Attributes:
        folder: under ``nnUNet_raw``.
        plans: name of the plans beside its preprocessed data; they are the first teacher's.
        labelled: number of cases labelled by people.
        teaching: the teachers that can also teach during training: those with the first one's folds and voxels.
        scans: for each case ``agreement``, ``ignored`` and ``voxels``, or why it was ``left_out``.
        structures: the structures that the teachers label.
    """

    folder: Path
    plans: str
    configuration: str
    labellers: Sequence[Labeller]
    teaching: Sequence[Labeller]
    labelled: int
    scans: dict[str, dict[str, Any]]
    structures: Structures
    uses_ignore: bool
    splits: Sequence[dict[str, list[str]]]


def make(request: Request, say: Callable[[str], None]) -> MadeDataset:
    """Check everything, label every scan, write the dataset.

    Args:
        request: the flags.
        say: called with messages for the user.

    Raises:
        KDError: if anything is wrong (all problems together, before any teacher runs); if scans could not be labelled
            (after all others are); or if the disk is full. Finished scans are kept.
    """
    missing = list(unset_variables())
    if missing:
        raise KDError(listing("nnU-Net's paths are needed:", [f"{line}: export it" for line in missing]))
    labellers, problems = find_labellers(request.models)
    if not labellers:
        raise KDError(listing("No scan was labelled:", problems))
    labelled, dataset_json, of_labelled = _labelled(request, labellers[0])
    name = output_name(request.output, _dataset_name(request) or str(labellers[0].plans["dataset_name"]))
    names = [str(channel) for channel in channels(dataset_json).values()]
    scans, of_scans = find_scans(request.scans, dataset_json["file_ending"], names)
    problems += label_problems(labellers, structures_of(dataset_json))
    for labeller in labellers:
        problems += channel_problems(labeller, names)
    output = Output(name, _settings(request, labellers, scans), request.command)
    problems += [*same_reader_problems(labellers), *of_labelled, *of_scans, *filter(None, [output.problem()])]
    problems += check_scans(scans, labellers[0].reader(), names, labelled.images)
    if problems:
        raise KDError(listing("No scan was labelled:", problems))
    dataset_json = _with_ignore(dataset_json, labellers, request.rules)
    try:
        output.folder.mkdir(parents=True, exist_ok=True)
        with lock_folder(output.folder) as news:
            if news:
                say(news)
            output.begin()
            _label_all(request, labellers, scans, output, dataset_json, say)
            made = _finish(request, labellers, labelled, output, dataset_json)
        (output.folder / "lock").unlink(missing_ok=True)
    except OSError as error:
        raise _cannot_write(request, output, error) from error
    return made


def _cannot_write(request: Request, output: Output, error: Exception) -> KDError:
    full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or not shutil.disk_usage(output.folder).free
    what = "The disk is full" if full else f"{output.folder} cannot be written to ({error})"
    return KDError(
        f"{what}: {output.folder} holds {len(output.scans)} finished scans, which are kept. Solve this, then go on "
        f"with: {request.command}"
    )


def _dataset_name(request: Request) -> str | None:
    return request.dataset.name if request.dataset is not None else None


def _labelled(request: Request, first: Labeller) -> tuple[Labelled, dict[str, Any], list[str]]:
    """The labelled cases and their dataset.json; without labelled cases, the first teacher's, or the named labels."""
    if request.dataset is None:
        kept = ["channel_names", "modality", "overwrite_image_reader_writer", "file_ending"]
        names = list(dict.fromkeys(name for named in request.models.named for name in named))
        kept += [] if names else ["labels", "regions_class_order"]
        named = {"labels": {"background": 0} | {name: value for value, name in enumerate(names, 1)}} if names else {}
        return NOBODY, {key: first.dataset_json[key] for key in kept if key in first.dataset_json} | named, []
    labelled, problems = read_labelled(request.dataset)
    return labelled, read_dataset_json(request.dataset / "dataset.json"), problems


def _settings(request: Request, labellers: Sequence[Labeller], scans: Sequence[Scan]) -> dict[str, Any]:
    """Everything that the labels depend on."""
    return {
        "dataset": _dataset_name(request),
        "scans": {scan.case: [str(file.absolute()) for file in scan.files] for scan in scans},
        "teachers": [record.sha256 for labeller in labellers for record in labeller.records],
        "labels": [dict(named) for named in request.models.named],
        "mirroring": [list(labeller.mirroring) for labeller in labellers],
        "rules": asdict(request.rules),
    }


def _with_ignore(dataset_json: dict[str, Any], labellers: Sequence[Labeller], rules: Rules) -> dict[str, Any]:
    """The dataset.json with an ignore label, if needed; nnU-Net requires it to have the highest value."""
    if "ignore" in dataset_json["labels"] or not rules.ignores(sum(len(labeller.records) for labeller in labellers)):
        return dataset_json
    values = [value for label in labels_without_ignore(dataset_json).values() for value in np.atleast_1d(label)]
    return dataset_json | {"labels": {**dataset_json["labels"], "ignore": int(max(values)) + 1}}


def _label_all(
    request: Request,
    labellers: Sequence[Labeller],
    scans: Sequence[Scan],
    output: Output,
    dataset_json: dict[str, Any],
    say: Callable[[str], None],
) -> None:
    todo = [scan for scan in scans if scan.case not in output.scans]
    if len(todo) < len(scans):
        say(f"{len(scans) - len(todo)} of {len(scans)} scans are labelled already.")
    failed = []
    for scan in tqdm(todo, desc="labelling", unit="scan", disable=None):
        try:
            labels, properties = _label(request, labellers, scan, dataset_json)
        except Exception as error:  # any error: go on with the other scans, and report it at the end
            failed.append(f"{scan.case}: {type(error).__name__}: {error}")
            continue
        try:
            _place(request, labellers[0], scan, labels, properties, output, dataset_json["file_ending"])
        except Exception as error:  # a disk error, for which every image library has its own class
            raise _cannot_write(request, output, error) from error
    if failed:
        title = f"{len(failed)} of {len(scans)} scans could not be labelled; the others are, and are kept:"
        line = f"Remove these scans and start again with another -o, or solve the problems and go on: {request.command}"
        raise KDError(f"{listing(title, failed)}\n{line}")


def _label(
    request: Request, labellers: Sequence[Labeller], scan: Scan, dataset_json: dict[str, Any]
) -> tuple[PseudoLabels, dict[str, Any]]:
    """The labels of one scan, and nnU-Net's properties of it."""
    manager = PlansManager(labellers[0].plans).get_label_manager(dataset_json)
    structures = structures_of(dataset_json)
    values = {name: tuple(sorted(own)) for name, own in structures.values.items()}
    mean, members = Mean(len(values), structures.uses_sigmoid), []
    properties: dict[str, Any] = {}
    for labeller in labellers:
        label_map = labeller.map_to(structures)
        known = {structures.names[number]: values[structures.names[number]] for number in label_map.known}
        for probabilities, read in labeller.probabilities(scan.files, label_map):
            own = Mean(len(values), structures.uses_sigmoid)
            own.add(probabilities, label_map.known)
            members.append(Member(as_segmentation(own.heads(), manager), known))
            mean.add(probabilities, label_map.known)
            properties = properties or read
    ignore = dataset_json["labels"].get("ignore", 0)
    return pseudo_labels(mean.heads(), members, manager, values, ignore, request.rules), properties


def _place(
    request: Request,
    first: Labeller,
    scan: Scan,
    labels: PseudoLabels,
    properties: dict[str, Any],
    output: Output,
    ending: str,
) -> None:
    """Write a scan's label and image, unless it is left out, and then its facts."""
    why = ""
    if labels.agreement is not None and labels.agreement < request.rules.scan_dice:
        why = f"the teachers agree by a Dice of {labels.agreement:.3f} only"
    else:
        with tempfile.TemporaryDirectory(prefix=".unfinished_", dir=output.folder) as folder:
            written = Path(folder) / f"{scan.case}{ending}"
            first.reader().write_seg(labels.segmentation, str(written), properties)
            written.replace(output.folder / "labelsTr" / written.name)
        for channel, file in enumerate(scan.files):
            output.add("imagesTr", f"{scan.case}_{channel:04d}{ending}", file, request.copy)
    facts = {"agreement": labels.agreement, "ignored": labels.ignored, "voxels": labels.voxels, "left_out": why}
    output.done(scan.case, facts)


def _finish(
    request: Request, labellers: Sequence[Labeller], labelled: Labelled, output: Output, dataset_json: dict[str, Any]
) -> MadeDataset:
    ending = dataset_json["file_ending"]
    kept = output.kept()
    if not kept:
        raise KDError(
            f"The teachers disagree on all {len(output.scans)} scans, so there is nothing to train on: see "
            f"{output.folder / PROGRESS}. Lower --scan_dice with another -o, or take teachers that fit these scans."
        )
    for case, files in labelled.images.items():
        for file in files:
            output.add("imagesTr", f"{case}{Path(file).name[-len('_0000') - len(ending) :]}", Path(file), request.copy)
        output.add("labelsTr", f"{case}{ending}", Path(labelled.labels[case]), request.copy)
    splits = joined_splits(labelled, kept)
    records = teachers_as_dicts(labellers)
    before = teacher_labelled(dataset_json)  # labelled in an earlier round, if its dataset is the labelled one here
    facts = {
        "cases": sorted({*kept, *before}),
        "left_out": output.left_out(),
        "teachers": [*labelling_teachers(dataset_json), *records],
        "of_dataset": _dataset_name(request),
        "rules": asdict(request.rules),
        "validation": "labels of people" if labelled.images.keys() - before else "agreement with the teacher",
        "command": request.command,
    }
    content = {key: value for key, value in dataset_json.items() if key != "dataset"}
    content |= {"numTraining": len(kept) + len(labelled.images), KEY: facts}
    plans = student_base(labellers[0].plans, output.folder.name)
    beside = {"dataset.json": content, SPLITS: splits, f"{plans['plans_name']}.json": plans}
    write_preprocessed(output.folder.name, beside)
    output.finish(content)
    return MadeDataset(
        folder=output.folder,
        plans=plans["plans_name"],
        configuration=labellers[0].configuration,
        labellers=labellers,
        teaching=_teaching(labellers, plans, content),
        labelled=len(labelled.images),
        scans=output.scans,
        structures=structures_of(dataset_json),
        uses_ignore="ignore" in dataset_json["labels"],
        splits=splits,
    )


def _teaching(labellers: Sequence[Labeller], plans: Plans, dataset_json: dict[str, Any]) -> list[Labeller]:
    """The first teacher, and those with the same fold numbers and the same preprocessed voxels."""
    first = labellers[0]
    found = []
    for labeller in labellers:
        if [record.fold for record in labeller.records] != [record.fold for record in first.records]:
            continue
        with suppress(KDError):  # such a teacher only labels
            own = labeller.plans, labeller.dataset_json
            voxels_only = bool(labeller.all_named(structures_of(dataset_json)))  # its labels are mapped
            check_same_task(
                own, (plans, dataset_json), labeller.configuration, first.configuration, labels=not voxels_only
            )
            found.append(labeller)
    return found


def student_base(plans: Plans, dataset: str) -> Plans:
    """A teacher's plans for another dataset, as nnU-Net moves them, so that the student sees scans as
    its teacher does."""
    return {key: value for key, value in plans.items() if key not in STUDENT_KEYS} | {"dataset_name": dataset}
