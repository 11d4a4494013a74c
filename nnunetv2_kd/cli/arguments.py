"""The arguments of every sub-command. To keep ``--help`` fast, this module imports nothing slow: what a sub-command
does is in the module of the same name, which `main` imports only when needed."""

import argparse
from pathlib import Path
from typing import Any

from nnunetv2_kd import __version__
from nnunetv2_kd.choices import (
    CPU_SPEEDS,
    DEVICES,
    EXPORT_FORMATS,
    EXPORT_PRECISIONS,
    PRECISIONS,
    RUNTIME_CHOICES,
    RUNTIMES,
)


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Shows only the defaults that are set."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, False) else super()._get_help_string(action)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nnUNetv2_kd",
        description="Knowledge distillation for nnU-Net v2. A student is trained with nnU-Net's own command: "
        "nnUNetv2_train DATASET CONFIGURATION FOLD -tr nnUNetTrainerRegionKD. The sub-commands here do what comes "
        "before and after.",
    )
    parser.add_argument("--version", action="version", version=f"nnunetv2_kd {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND")
    for add in (
        _plan,
        _split_teachers,
        _store,
        _unlabelled,
        _predict,
        _export,
        _benchmark,
        _leaderboard,
        _status,
        _doctor,
        _demo,
    ):
        add(subparsers)
    return parser


def _trust(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--trust",
        "--trust_pickle",  # its former name
        dest="trust",
        action="store_true",
        help="load checkpoints with more than plain data in them, and networks of any package that plans name; both "
        "can run code",
    )


def _plan(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "plan",
        help="write a student's plans file",
        description="Write a shrunken plans file beside the teacher's, for the same preprocessed data. Train "
        "with it: nnUNetv2_train DATASET CONFIGURATION FOLD -p STUDENT_PLANS -tr nnUNetTrainerRegionKD",
        formatter_class=_Help,
    )
    parser.add_argument("-d", required=True, metavar="DATASET", help="dataset id or name")
    parser.add_argument("-p", default="nnUNetPlans", metavar="PLANS", help="the teacher's plans")
    parser.add_argument(
        "-o", default=None, metavar="STUDENT_PLANS", help="the student's plans; default: PLANS + Student (or Coarser)"
    )
    parser.add_argument(
        "-c", nargs="+", default=None, metavar="CONFIGURATION", help="default: all (if coarser: 3d_fullres)"
    )
    parser.add_argument("--width", type=float, help="factor on the channels; default: 0.5")
    parser.add_argument("--params", help="parameters, at most: 0.5M, 120k, or a fraction of the teacher's: 0.1")
    parser.add_argument("--flops", help="maximum FLOPs per patch: 20G, or a fraction of the teacher's: 0.1")
    parser.add_argument(
        "--features", metavar="8,16,32,64", help="channels per stage by hand, from full resolution down"
    )
    parser.add_argument(
        "--latency",
        metavar="300ms",
        help="maximum time for a whole case on this machine: shapes are timed, and the one with the most FLOPs within "
        "this time is taken",
    )
    parser.add_argument("--runtime", choices=RUNTIMES, help="for --latency; default: openvino, if installed")
    parser.add_argument("--precision", choices=PRECISIONS, default="f32", help="of --latency")
    parser.add_argument("--disable_tta", action="store_true", help="for --latency: without mirroring")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="for --latency: plot the shapes")
    parser.add_argument(
        "--spacing",
        nargs="+",
        type=float,
        metavar="MM",
        help="a coarser student: spacing in mm, in the order of the plans file. nnU-Net's planner plans again for it; "
        "the teacher teaches through nnUNetv2_kd store",
    )
    parser.add_argument(
        "--coarser",
        type=float,
        metavar="N",
        help="a coarser student: on average N times fewer voxels along each axis, as isotropic as the data allow",
    )
    parser.add_argument("--convs-per-stage", type=int, help="maximum number of convolutions (or blocks) per stage")
    _trust(parser)
    parser.add_argument("--batch-size", type=int, help="batch size; default: the teacher's")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing plans file")


def _split_teachers(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "split-teachers",
        help="write folds for several teachers",
        description="Give each of several teachers its own share of one fold's training cases, as additional folds in "
        "splits_final.json. Existing folds and the validation cases do not change. Prints the commands that train the "
        "teachers and the student.",
        formatter_class=_Help,
    )
    parser.add_argument("-d", required=True, metavar="DATASET", help="dataset id or name")
    parser.add_argument("-n", type=int, default=None, metavar="TEACHERS", help="how many; default: 3, or one per group")
    parser.add_argument("-f", type=int, default=0, metavar="FOLD", help="the fold whose training cases are shared out")
    parser.add_argument("-p", default="nnUNetPlans", metavar="PLANS", help="the teachers' plans, for printed commands")
    parser.add_argument(
        "-c",
        metavar="CONFIGURATION",
        help="for the printed commands; default: 3d_fullres, or the plans' first configuration",
    )
    parser.add_argument("--cases", type=int, default=None, help="maximum number of cases per teacher; default: all")
    parser.add_argument(
        "--groups",
        type=Path,
        default=None,
        metavar="FILE",
        help="CSV file with the columns case and group (site, scanner); a group stays with one teacher",
    )
    parser.add_argument("--seed", type=int, default=0, help="for shuffling the cases")
    parser.add_argument("-o", type=Path, default=Path("teachers.yaml"), help="options file for the student's training")


def _store(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "store",
        help="store a teacher's predictions, so that trainings need not run it",
        description="Run a trained model, or several as an ensemble, over every preprocessed case with nnU-Net's own "
        "sliding window, and store the class probabilities beside the preprocessed data. A training with the option "
        "stored_teacher reads them instead of running the teacher.",
        epilog="To go on after an interruption, or to add new cases, repeat the command without --overwrite. For the "
        "differences from a teacher that runs during training, see docs/stored_teacher.md.",
    )
    parser.add_argument("-d", required=True, metavar="DATASET", help="dataset id or name")
    parser.add_argument("-c", default="3d_fullres", metavar="CONFIGURATION", help="default: 3d_fullres")
    parser.add_argument(
        "-p",
        default="nnUNetPlans",
        metavar="PLANS",
        help="the teacher's plans; the store is for their preprocessed data, which students made from these plans "
        "share; default: nnUNetPlans",
    )
    parser.add_argument("-tr", default="nnUNetTrainer", metavar="TRAINER", help="the teacher's; default: nnUNetTrainer")
    parser.add_argument(
        "-f", nargs="+", default=["0"], metavar="FOLD", help="the teacher's fold; several: an ensemble; default: 0"
    )
    parser.add_argument(
        "--teacher_folder",
        type=Path,
        action="append",
        metavar="FOLDER",
        help="any nnU-Net model, instead of the one that -tr and -p name, with any spacing, labels and dimensions; if "
        "given several times: an ensemble of them all, with the folds -f of each",
    )
    parser.add_argument(
        "--labels",
        nargs="+",
        action="extend",
        metavar="LABEL=THEIRS",
        help="a label of the student, and the teacher's labels that make it up: kidney=kidney_left,kidney_right; "
        "spleen= leaves it to the student's own labels; 2:LABEL=... is for the second teacher; others are matched by "
        "name",
    )
    parser.add_argument(
        "--channels",
        nargs="+",
        action="extend",
        metavar="THEIRS=NAME",
        help="the teacher's and the student's name of a channel, if they differ",
    )
    parser.add_argument(
        "--weights", nargs="+", type=float, metavar="W", help="for each --teacher_folder, if several know a label"
    )
    parser.add_argument("-chk", default="checkpoint_final.pth", metavar="FILE", help="default: checkpoint_final.pth")
    parser.add_argument("-o", metavar="NAME", help="the store's name; default: fold_ followed by the folds")
    parser.add_argument("--disable_tta", action="store_true", help="no mirroring: faster, slightly less accurate")
    parser.add_argument("--overwrite", action="store_true", help="replace a store of other teachers")
    _trust(parser)
    parser.add_argument("--bfloat16", action="store_true", help="faster, on a CPU with bfloat16 instructions")
    parser.add_argument("-device", default="cuda", choices=DEVICES, help="default: cuda")


def _unlabelled(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "unlabelled",
        help="let a teacher label scans, and make a dataset from them for a student",
        description="Make a dataset in nnU-Net's raw format from the cases of a labelled dataset and from unlabelled "
        "scans, which one or several teachers label. Voxels of which the teachers are not sure get nnU-Net's ignore "
        "label. With --train, a student is trained right away. Without -d, teachers label everything.",
        epilog="To go on after an interruption, repeat the command. docs/unlabelled.md shows all steps.",
    )
    parser.add_argument("-i", type=Path, required=True, metavar="SCANS", help="folder with CASE_0000.nii.gz ...")
    parser.add_argument("-o", required=True, metavar="DATASET", help="number or name of the dataset to make")
    parser.add_argument("-d", metavar="DATASET", help="the dataset with the labelled cases; default: none")
    parser.add_argument(
        "--teacher_folder",
        type=Path,
        action="append",
        metavar="FOLDER",
        help="the folder of any nnU-Net model; may be given several times; default: the model of -d, -tr, -p and -c",
    )
    parser.add_argument("-tr", default="nnUNetTrainer", metavar="TRAINER", help="default: nnUNetTrainer")
    parser.add_argument("-p", default="nnUNetPlans", metavar="PLANS", help="default: nnUNetPlans")
    parser.add_argument("-c", default="3d_fullres", metavar="CONFIGURATION", help="default: 3d_fullres")
    parser.add_argument("-f", nargs="+", metavar="FOLD", help="the teachers' folds; default: all that are trained")
    parser.add_argument(
        "--labels",
        nargs="+",
        action="extend",
        metavar="LABEL=THEIRS",
        help="a label of the dataset, and the teacher's labels that make it up: kidney=kidney_left,kidney_right; "
        "2:LABEL=... is for the second teacher; others are matched by name. Without -d, the dataset has only these "
        "labels",
    )
    parser.add_argument("-chk", default="checkpoint_final.pth", metavar="FILE", help="default: checkpoint_final.pth")
    parser.add_argument(
        "--confidence",
        type=float,
        default=0.0,
        metavar="P",
        help="ignore voxels whose label has a lower mean probability; default: 0, ignore none",
    )
    parser.add_argument(
        "--votes",
        type=float,
        default=1.0,
        metavar="SHARE",
        help="with several teachers or folds: ignore voxels if a smaller share of them agrees on the label; default: "
        "1, all must agree",
    )
    parser.add_argument(
        "--scan_dice",
        type=float,
        default=0.7,
        metavar="DICE",
        help="with several: leave out scans on which their mean Dice with their average prediction is lower; "
        "default: 0.7",
    )
    parser.add_argument("--copy", action="store_true", help="copy images and labels; default: link them")
    parser.add_argument("--disable_tta", action="store_true", help="no mirroring: faster, slightly less accurate")
    _trust(parser)
    parser.add_argument("--train", action="store_true", help="then preprocess, and train a student on fold 0")
    parser.add_argument("-device", default="cuda", choices=DEVICES, help="default: cuda")


def _predict(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "predict",
        help="nnUNetv2_predict, faster on a CPU",
        description="Predict as nnUNetv2_predict does, and with -m FOLDER as nnUNetv2_predict_from_modelfolder does: "
        "the same arguments (nnUNetv2_predict -h), the same files. With -device cpu the network runs in the fastest "
        "runtime that is installed (pip install 'nnunetv2_kd[cpu]'), with results equal up to rounding. Works with "
        "every nnU-Net model, and with folders written by nnUNetv2_kd export.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--runtime",
        choices=RUNTIME_CHOICES,
        default="measure",
        help="what the network runs in on a CPU; default: measure, the fastest that is installed",
    )
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="f32",
        help="default: f32, as nnU-Net; bf16 needs a processor that has it; int8 the preprocessed training cases",
    )
    parser.add_argument(
        "--cpu_speed",
        choices=CPU_SPEEDS,
        metavar="WAY",
        help=f"instead of --runtime: PyTorch in one of its modes, {', '.join(CPU_SPEEDS)}",
    )
    _trust(parser)
    parser.set_defaults(for_nnunet=[])  # unknown arguments are passed on to nnU-Net


def _export(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "export",
        help="write a model for ONNX, OpenVINO, stock nnU-Net or no nnU-Net at all, and check it",
        description="Export a trained model: its weights without the optimizer as a stock nnU-Net folder and zip; its "
        "network for ONNX Runtime or OpenVINO, with everything that nnUNetv2_kd predict -m FOLDER needs; or a folder "
        "that predicts by itself, without torch and nnU-Net (portable: python FOLDER/predict.py). A model card is "
        "written beside it. Names of cases and paths are not exported.",
        epilog="The exported model then predicts the fold's validation cases, or the images of -i, and is compared "
        "with PyTorch. If it differs by more than the tolerance, the export fails and nothing is written. "
        "docs/deploy.md shows all steps.",
    )
    parser.add_argument("-d", metavar="DATASET", help="dataset id or name")
    parser.add_argument(
        "-c",
        nargs="+",
        default=["3d_fullres"],
        metavar="CONFIGURATION",
        help="with --format portable, several models that predict together; default: 3d_fullres",
    )
    parser.add_argument("-p", default="nnUNetPlans", metavar="PLANS", help="default: nnUNetPlans")
    parser.add_argument("-tr", default="nnUNetTrainer", metavar="TRAINER", help="default: nnUNetTrainer")
    parser.add_argument(
        "-m",
        nargs="+",
        type=Path,
        metavar="FOLDER",
        help="a model folder instead of -d, -c, -p and -tr; with --format portable also a zip, or several that predict "
        "together",
    )
    parser.add_argument("-f", nargs="+", default=["0"], metavar="FOLD", help="fold; several: an ensemble; default: 0")
    parser.add_argument("-chk", default="checkpoint_final.pth", metavar="FILE", help="default: checkpoint_final.pth")
    parser.add_argument("-o", type=Path, required=True, metavar="FOLDER", help="the folder to create")
    parser.add_argument("--format", choices=EXPORT_FORMATS, default="openvino", help="default: openvino")
    parser.add_argument(
        "--precision",
        choices=EXPORT_PRECISIONS,
        default="f32",
        help="openvino: f32, bf16 and int8 set the precision of computation, fp16 that of the stored weights; nnunet: "
        "f32 or fp16; onnx: f32; default: f32",
    )
    parser.add_argument("-i", type=Path, metavar="IMAGES", help="images to compare on; default: the validation cases")
    parser.add_argument("-gt", type=Path, metavar="LABELS", help="the ground truth of -i")
    parser.add_argument("-prev_stage_predictions", type=Path, metavar="FOLDER", help="for a cascade and -i")
    parser.add_argument("--cases", type=int, metavar="N", help="compare on at most N cases; default: all")
    parser.add_argument(
        "--tolerance",
        type=float,
        metavar="X",
        help="f32: differing voxels per 100,000 of foreground, default 5; others: change of a structure's Dice, "
        "default 0.001, for int8 0.005",
    )
    _trust(parser)
    parser.add_argument("--intended-use", default="", metavar="TEXT", help="for the model card")
    parser.add_argument("--licence", default="", metavar="TEXT", help="for the model card")
    portable = parser.add_argument_group("--format portable")
    portable.add_argument("--openvino", action="store_true", help="write OpenVINO's files beside the ONNX ones")
    portable.add_argument(
        "--postprocessing",
        type=Path,
        metavar="JSON",
        help="nnU-Net's postprocessing.json; default: what it determined for these folds, if anything",
    )
    portable.add_argument(
        "--codes", type=Path, metavar="JSON", help="DICOM codes of the structures: {LABEL: [VALUE, SCHEME, MEANING]}"
    )
    portable.add_argument(
        "--wheels",
        nargs=2,
        metavar=("PLATFORM", "PYTHON"),
        help="for a machine without internet, such as: --wheels linux_x86_64 3.12 (also win_amd64, macosx_arm64, "
        "linux_aarch64)",
    )


def _benchmark(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "benchmark",
        help="time trained models against each other",
        description="Parameters, FLOPs, peak memory and milliseconds per case of trained models on this device, from "
        "image to segmentation in nnU-Net's predictor, and how many times faster each is than the first.",
    )
    parser.add_argument("-m", nargs="+", type=Path, default=[], metavar="FOLDER", help="model folders, teacher first")
    parser.add_argument("-d", metavar="DATASET", help="or: all trained models of a dataset, largest first")
    parser.add_argument("-c", nargs="+", metavar="CONFIGURATION", help="with -d: only these")
    parser.add_argument("-p", nargs="+", metavar="PLANS", help="with -d: only these")
    parser.add_argument("-tr", nargs="+", metavar="TRAINER", help="with -d: only these")
    parser.add_argument("-f", metavar="FOLD", help="fold; default: the first that is trained")
    parser.add_argument("-i", type=Path, metavar="IMAGES", help="images; default: the fold's validation cases")
    parser.add_argument("--cases", type=int, default=5, metavar="N", help="default: 5")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="predictions of every case; default: 3")
    parser.add_argument("-device", default="cuda", choices=DEVICES, help="default: cuda")
    parser.add_argument(
        "--cpu_speed",
        nargs="+",
        choices=CPU_SPEEDS,
        default=["float32"],
        metavar="WAY",
        help=f"CPU modes, one table row each: {', '.join(CPU_SPEEDS)}; default: float32, nnU-Net's",
    )
    parser.add_argument(
        "--runtime",
        nargs="+",
        choices=RUNTIME_CHOICES,
        default=[],
        help="additional rows on a CPU: the predictor of nnUNetv2_kd predict in these runtimes",
    )
    parser.add_argument(
        "--precision", nargs="+", choices=PRECISIONS, default=["f32"], help="for --runtime, one row each; default: f32"
    )
    _trust(parser)
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers to a file")


def _leaderboard(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "leaderboard",
        help="compare trained models",
        description="Compare every trained model of a dataset: Dice, surface distances, cost, and significance of "
        "differences. Prints a table; with -o also writes CSV, JSON, Markdown, LaTeX and a page for the browser.",
        epilog="Without -i, the numbers are from nnU-Net's own validation of each fold. docs/leaderboard.md explains "
        "the columns and marks.",
    )
    parser.add_argument("-d", nargs="+", required=True, metavar="DATASET", help="dataset ids or names")
    parser.add_argument("-c", nargs="+", metavar="CONFIGURATION", help="only these; default: all")
    parser.add_argument("-f", nargs="+", metavar="FOLD", help="only these; default: all that are trained")
    parser.add_argument("-o", type=Path, metavar="FOLDER", help="folder to write to; default: only print the table")
    parser.add_argument("-i", type=Path, metavar="IMAGES", help="predict these images instead (CASE_0000.nii.gz ...)")
    parser.add_argument("-gt", type=Path, metavar="LABELS", help="their ground truth (CASE.nii.gz)")
    parser.add_argument("--reference", metavar="NAME", help="test the others against this model (or part of its name)")
    parser.add_argument("--teacher", metavar="NAME", help="the teacher of the students; default: as recorded in them")
    parser.add_argument(
        "--every-seed",
        action="store_true",
        help="one row per training; default: one row for all seeds, mean ± SD",
    )
    parser.add_argument("--tolerance", type=float, default=1.0, metavar="MM", help="for the surface Dice; default: 1.0")
    parser.add_argument("--wide", action="store_true", help="print all columns; default: those that fit the terminal")
    parser.add_argument("--time", type=int, default=0, metavar="N", help="time every model on N cases; default: 0")
    parser.add_argument(
        "--runtime",
        nargs="+",
        choices=RUNTIME_CHOICES,
        default=[],
        help="runtimes for -i and --time on a CPU, one row each; default: as in stock nnU-Net",
    )
    parser.add_argument(
        "--precision", nargs="+", choices=PRECISIONS, default=["f32"], help="for --runtime, one row each; default: f32"
    )
    _trust(parser)
    parser.add_argument("-np", type=int, metavar="N", help="processes for scoring; default: nnU-Net's")
    parser.add_argument("-device", default="cuda", choices=DEVICES, help="for -i and --time")


def _status(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "status",
        help="show what exists for a dataset, and what is no longer needed",
        description="Trained models fold by fold (kind, method, seed, state, Dice), stores of teachers' predictions, "
        "and what can be deleted, with its size. Nothing is changed or deleted.",
    )
    parser.add_argument("-d", nargs="+", required=True, metavar="DATASET", help="dataset ids or names")


def _doctor(subparsers: Any) -> None:
    subparsers.add_parser(
        "doctor",
        help="check this installation",
        description="Show versions, trainer discovery, nnU-Net's paths, the device and the teachers of every dataset. "
        "If something would stop a training, prints the command that solves it, and exits with 1.",
    )


def _demo(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "demo",
        help="distil a student on bundled real data",
        description="Install a bundled teacher, train a student alone on a few labelled hippocampus cases and a "
        "distilled student on these and on scans that the teacher labels, with nnU-Net's own commands, and compare "
        "them. Runs on a CPU, and does not touch your data.",
        epilog="The data are 32 cases of the Medical Segmentation Decathlon's hippocampus task (CC-BY-SA 4.0, see "
        "ATTRIBUTION.md in the demo's data folder).",
    )
    parser.add_argument("-o", type=Path, default=Path("demo_output"), metavar="FOLDER", help="default: demo_output")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.add_argument(
        "--train-teacher",
        action="store_true",
        help="train a teacher on the demo's 24 cases instead of using the bundled one; takes several times as long",
    )
    parser.add_argument("--smoke", action="store_true", help="two training iterations only, to check the installation")
