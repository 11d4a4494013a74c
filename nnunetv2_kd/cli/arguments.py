"""The arguments of every sub-command. Nothing is imported here that would keep a user waiting for ``--help``: what a
sub-command does is in the module of its name, which `main` imports once it is asked for."""

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
    """Shows the defaults that there are."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, False) else super()._get_help_string(action)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nnUNetv2_kd",
        description="Knowledge distillation for nnU-Net v2. A student is trained with nnU-Net's own command: "
        "nnUNetv2_train DATASET CONFIGURATION FOLD -tr nnUNetTrainerRegionKD. The sub-commands here help around it.",
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
        description="Write a shrunken plans file beside the teacher's. It reads the same preprocessed data. Train "
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
    parser.add_argument("--params", help="at most so many parameters: 0.5M, 120k, or a fraction of the teacher's: 0.1")
    parser.add_argument("--flops", help="at most so many FLOPs per patch: 20G, or a fraction of the teacher's: 0.1")
    parser.add_argument(
        "--features", metavar="8,16,32,64", help="channels per stage by hand, from full resolution down"
    )
    parser.add_argument(
        "--latency",
        metavar="300ms",
        help="at most so much time for a whole case on this machine: shapes are timed, and the one with most FLOPs "
        "that keeps to it is taken",
    )
    parser.add_argument("--runtime", choices=RUNTIMES, help="of --latency; default: openvino, where it is installed")
    parser.add_argument("--precision", choices=PRECISIONS, default="f32", help="of --latency")
    parser.add_argument("--disable_tta", action="store_true", help="of --latency: a case without mirroring")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="of --latency: draw the shapes")
    parser.add_argument(
        "--spacing",
        nargs="+",
        type=float,
        metavar="MM",
        help="a coarser student: spacing in the order of the plans file. nnU-Net's planner plans anew for it; the "
        "teacher teaches through nnUNetv2_kd store",
    )
    parser.add_argument(
        "--coarser",
        type=float,
        metavar="N",
        help="a coarser student: N times fewer voxels along each axis in the mean, isotropic as far as the data allow",
    )
    parser.add_argument("--convs-per-stage", type=int, help="at most so many convolutions (or blocks) per stage")
    _trust(parser)
    parser.add_argument("--batch-size", type=int, help="another batch size; default: the teacher's")
    parser.add_argument("--overwrite", action="store_true", help="replace a plans file that is already there")


def _split_teachers(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "split-teachers",
        help="write folds for several teachers",
        description="Give each of several teachers its own share of the training cases of one fold, as further folds "
        "of splits_final.json. The folds that are there stay as they are, and so do the validation cases. Prints the "
        "lines that train the teachers and the student.",
        formatter_class=_Help,
    )
    parser.add_argument("-d", required=True, metavar="DATASET", help="dataset id or name")
    parser.add_argument("-n", type=int, default=None, metavar="TEACHERS", help="how many; default: 3, or one per group")
    parser.add_argument("-f", type=int, default=0, metavar="FOLD", help="whose training cases are shared out")
    parser.add_argument("-p", default="nnUNetPlans", metavar="PLANS", help="the teachers' plans, for the lines printed")
    parser.add_argument(
        "-c",
        metavar="CONFIGURATION",
        help="for the lines printed; default: 3d_fullres, or the first of the plans",
    )
    parser.add_argument("--cases", type=int, default=None, help="at most so many cases per teacher; default: all")
    parser.add_argument(
        "--groups",
        type=Path,
        default=None,
        metavar="FILE",
        help="CSV file with the columns case and group (site, scanner); a group stays with one teacher",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the shuffling")
    parser.add_argument("-o", type=Path, default=Path("teachers.yaml"), help="options file for the student's training")


def _store(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "store",
        help="store a teacher's predictions, so that no training has to run it",
        description="Run a trained model, or several as an ensemble, over every preprocessed case with nnU-Net's own "
        "sliding window, and store the class probabilities beside the preprocessed data. A training with the option "
        "stored_teacher reads them instead of running the teacher.",
        epilog="Interrupted, or data added since: the same line again, without --overwrite, goes on. What differs from "
        "a teacher that runs during the training: docs/stored_teacher.md.",
    )
    parser.add_argument("-d", required=True, metavar="DATASET", help="dataset id or name")
    parser.add_argument("-c", default="3d_fullres", metavar="CONFIGURATION", help="default: 3d_fullres")
    parser.add_argument(
        "-p",
        default="nnUNetPlans",
        metavar="PLANS",
        help="the teacher's, and whose preprocessed data are stored for; students made from them share these data; "
        "default: nnUNetPlans",
    )
    parser.add_argument("-tr", default="nnUNetTrainer", metavar="TRAINER", help="the teacher's; default: nnUNetTrainer")
    parser.add_argument(
        "-f", nargs="+", default=["0"], metavar="FOLD", help="the teacher's; several: an ensemble; default: 0"
    )
    parser.add_argument(
        "--teacher_folder",
        type=Path,
        action="append",
        metavar="FOLDER",
        help="any nnU-Net model instead of -tr and -p's, whatever its spacing, labels and dimensions; several times: "
        "an ensemble, of these folds of each",
    )
    parser.add_argument(
        "--labels",
        nargs="+",
        action="extend",
        metavar="LABEL=THEIRS",
        help="the student's label and the teacher's that make it up: kidney=kidney_left,kidney_right; spleen= leaves "
        "it to the student's own labels; 2:LABEL=... is for the second teacher; others are matched by name",
    )
    parser.add_argument(
        "--channels",
        nargs="+",
        action="extend",
        metavar="THEIRS=NAME",
        help="the teacher's channel and the student's, where names differ",
    )
    parser.add_argument(
        "--weights", nargs="+", type=float, metavar="W", help="of each --teacher_folder, where several know a label"
    )
    parser.add_argument("-chk", default="checkpoint_final.pth", metavar="FILE", help="default: checkpoint_final.pth")
    parser.add_argument("-o", metavar="NAME", help="the store's name; default: fold_ and the folds")
    parser.add_argument("--disable_tta", action="store_true", help="no mirroring: faster, a little less accurate")
    parser.add_argument("--overwrite", action="store_true", help="replace a store that other teachers have made")
    _trust(parser)
    parser.add_argument("--bfloat16", action="store_true", help="on a CPU that has the instructions: faster")
    parser.add_argument("-device", default="cuda", choices=DEVICES, help="default: cuda")


def _unlabelled(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "unlabelled",
        help="let a teacher label scans, and make a dataset of them for a student",
        description="Make a dataset in nnU-Net's raw format from the cases of a labelled dataset and from scans that "
        "nobody labelled, whose labels are one or several teachers'. Where these are not sure, voxels get nnU-Net's "
        "ignore label. With --train a student is trained right away. Without -d all labels are the teacher's.",
        epilog="Interrupted: the same line again goes on. docs/unlabelled.md shows the whole way.",
    )
    parser.add_argument("-i", type=Path, required=True, metavar="SCANS", help="folder with CASE_0000.nii.gz ...")
    parser.add_argument("-o", required=True, metavar="DATASET", help="number, or name, of the dataset to make")
    parser.add_argument("-d", metavar="DATASET", help="the labelled cases; default: none")
    parser.add_argument(
        "--teacher_folder",
        type=Path,
        action="append",
        metavar="FOLDER",
        help="any nnU-Net model's folder; several times: several teachers; default: the model of -d, -tr, -p and -c",
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
        help="the dataset's label and the teacher's that make it up: kidney=kidney_left,kidney_right; 2:LABEL=... is "
        "for the second teacher; others are matched by name. Without -d the labels named here are all there are",
    )
    parser.add_argument("-chk", default="checkpoint_final.pth", metavar="FILE", help="default: checkpoint_final.pth")
    parser.add_argument(
        "--confidence",
        type=float,
        default=0.0,
        metavar="P",
        help="ignore voxels whose label has a lower mean probability; default: 0, none",
    )
    parser.add_argument(
        "--votes",
        type=float,
        default=1.0,
        metavar="SHARE",
        help="of several teachers or folds: ignore voxels whose label fewer of them give; default: 1, all must",
    )
    parser.add_argument(
        "--scan_dice",
        type=float,
        default=0.7,
        metavar="DICE",
        help="of several: leave out scans on which their mean Dice with their mean is lower; default: 0.7",
    )
    parser.add_argument("--copy", action="store_true", help="copy images and labels; default: link them")
    parser.add_argument("--disable_tta", action="store_true", help="no mirroring: faster, a little less accurate")
    _trust(parser)
    parser.add_argument("--train", action="store_true", help="then preprocess, and train a student of fold 0")
    parser.add_argument("-device", default="cuda", choices=DEVICES, help="default: cuda")


def _predict(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "predict",
        help="nnUNetv2_predict, faster on a CPU",
        description="Predict as nnUNetv2_predict does, and with -m FOLDER as nnUNetv2_predict_from_modelfolder does: "
        "the same arguments (nnUNetv2_predict -h), the same files. With -device cpu the network runs in the fastest "
        "runtime that is installed (pip install 'nnunetv2_kd[cpu]'), exact to rounding. Works with every nnU-Net "
        "model, and with folders written by nnUNetv2_kd export.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--runtime",
        choices=RUNTIME_CHOICES,
        default="measure",
        help="what the network runs in on a CPU; default: measure, the fastest of those that are installed",
    )
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="f32",
        help="default: f32, nnU-Net's own; bf16 where the processor has it; int8 needs the preprocessed training cases",
    )
    parser.add_argument(
        "--cpu_speed",
        choices=CPU_SPEEDS,
        metavar="WAY",
        help=f"instead: PyTorch in one of its modes, {', '.join(CPU_SPEEDS)}",
    )
    _trust(parser)
    parser.set_defaults(for_nnunet=[])  # what is unknown here is nnU-Net's


def _export(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "export",
        help="write a model for ONNX, OpenVINO, stock nnU-Net or no nnU-Net at all, and prove it",
        description="Export a trained model: its weights without optimizer as a stock nnU-Net folder and zip, its "
        "network for ONNX Runtime or OpenVINO, with all that nnUNetv2_kd predict -m FOLDER needs, or a folder that "
        "predicts by itself, without torch and nnU-Net (portable: python FOLDER/predict.py). A model card is written "
        "beside it. No names of cases and no paths are exported.",
        epilog="The exported model then predicts the fold's validation cases, or -i, and is compared with PyTorch. "
        "Where it differs by more than the tolerance, the export fails and nothing is written. docs/deploy.md shows "
        "the whole way.",
    )
    parser.add_argument("-d", metavar="DATASET", help="dataset id or name")
    parser.add_argument(
        "-c",
        nargs="+",
        default=["3d_fullres"],
        metavar="CONFIGURATION",
        help="several: models that predict together, of portable; default: 3d_fullres",
    )
    parser.add_argument("-p", default="nnUNetPlans", metavar="PLANS", help="default: nnUNetPlans")
    parser.add_argument("-tr", default="nnUNetTrainer", metavar="TRAINER", help="default: nnUNetTrainer")
    parser.add_argument(
        "-m",
        nargs="+",
        type=Path,
        metavar="FOLDER",
        help="a model folder instead of -d, -c, -p and -tr; of portable also a zip, and several that predict together",
    )
    parser.add_argument("-f", nargs="+", default=["0"], metavar="FOLD", help="several: an ensemble; default: 0")
    parser.add_argument("-chk", default="checkpoint_final.pth", metavar="FILE", help="default: checkpoint_final.pth")
    parser.add_argument("-o", type=Path, required=True, metavar="FOLDER", help="the folder to make")
    parser.add_argument("--format", choices=EXPORT_FORMATS, default="openvino", help="default: openvino")
    parser.add_argument(
        "--precision",
        choices=EXPORT_PRECISIONS,
        default="f32",
        help="of openvino: f32, bf16, int8 compute in it, fp16 keeps the weights in it; nnunet has f32 and fp16, onnx "
        "has f32; default: f32",
    )
    parser.add_argument("-i", type=Path, metavar="IMAGES", help="compare on these; default: the validation cases")
    parser.add_argument("-gt", type=Path, metavar="LABELS", help="the ground truth of -i")
    parser.add_argument("-prev_stage_predictions", type=Path, metavar="FOLDER", help="of a cascade, for these images")
    parser.add_argument("--cases", type=int, metavar="N", help="compare on so many cases only; default: all")
    parser.add_argument(
        "--tolerance",
        type=float,
        metavar="X",
        help="f32: differing voxels in 100,000 of foreground, default 5; others: change of a structure's Dice, default "
        "0.001, of int8 0.005",
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
        "image to segmentation through nnU-Net's predictor, and how many times faster than the first each is.",
    )
    parser.add_argument("-m", nargs="+", type=Path, default=[], metavar="FOLDER", help="model folders, teacher first")
    parser.add_argument("-d", metavar="DATASET", help="or all trained models of a dataset, the largest first")
    parser.add_argument("-c", nargs="+", metavar="CONFIGURATION", help="of -d, only these")
    parser.add_argument("-p", nargs="+", metavar="PLANS", help="of -d, only these")
    parser.add_argument("-tr", nargs="+", metavar="TRAINER", help="of -d, only these")
    parser.add_argument("-f", metavar="FOLD", help="default: the first that is trained")
    parser.add_argument("-i", type=Path, metavar="IMAGES", help="default: the validation cases of the fold")
    parser.add_argument("--cases", type=int, default=5, metavar="N", help="default: 5")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="of every case; default: 3")
    parser.add_argument("-device", default="cuda", choices=DEVICES, help="default: cuda")
    parser.add_argument(
        "--cpu_speed",
        nargs="+",
        choices=CPU_SPEEDS,
        default=["float32"],
        metavar="WAY",
        help=f"CPU modes, one line of the table each: {', '.join(CPU_SPEEDS)}; default: float32, nnU-Net's",
    )
    parser.add_argument(
        "--runtime",
        nargs="+",
        choices=RUNTIME_CHOICES,
        default=[],
        help="further lines on a CPU: in the predictor of nnUNetv2_kd predict, in these runtimes",
    )
    parser.add_argument(
        "--precision", nargs="+", choices=PRECISIONS, default=["f32"], help="of --runtime, one line each; default: f32"
    )
    _trust(parser)
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers into a file too")


def _leaderboard(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "leaderboard",
        help="compare trained models",
        description="Compare every trained model of a dataset: Dice, surface distances, cost, and whether differences "
        "are real. Prints a table; with -o also writes CSV, JSON, Markdown, LaTeX and a page for the browser.",
        epilog="Without -i the numbers are those of nnU-Net's own validation of each fold. What the columns and marks "
        "mean: docs/leaderboard.md.",
    )
    parser.add_argument("-d", nargs="+", required=True, metavar="DATASET", help="dataset ids or names")
    parser.add_argument("-c", nargs="+", metavar="CONFIGURATION", help="only these; default: all")
    parser.add_argument("-f", nargs="+", metavar="FOLD", help="only these; default: all that are trained")
    parser.add_argument("-o", type=Path, metavar="FOLDER", help="where to write; default: print the table only")
    parser.add_argument("-i", type=Path, metavar="IMAGES", help="predict these images instead (CASE_0000.nii.gz ...)")
    parser.add_argument("-gt", type=Path, metavar="LABELS", help="their ground truth (CASE.nii.gz)")
    parser.add_argument("--reference", metavar="NAME", help="test the others against this model (a part will do)")
    parser.add_argument("--teacher", metavar="NAME", help="the teacher of the students; default: as recorded in them")
    parser.add_argument(
        "--every-seed",
        action="store_true",
        help="a row per training; default: seeds are one row, mean ± SD",
    )
    parser.add_argument("--tolerance", type=float, default=1.0, metavar="MM", help="of the surface Dice; default: 1.0")
    parser.add_argument("--wide", action="store_true", help="print all columns; default: those that fit the terminal")
    parser.add_argument("--time", type=int, default=0, metavar="N", help="time every model on N cases; default: 0")
    parser.add_argument(
        "--runtime",
        nargs="+",
        choices=RUNTIME_CHOICES,
        default=[],
        help="what models run in for -i and --time on a CPU, one row each; default: as in stock nnU-Net",
    )
    parser.add_argument(
        "--precision", nargs="+", choices=PRECISIONS, default=["f32"], help="of --runtime, one row each; default: f32"
    )
    _trust(parser)
    parser.add_argument("-np", type=int, metavar="N", help="processes for scoring; default: nnU-Net's")
    parser.add_argument("-device", default="cuda", choices=DEVICES, help="for -i and --time")


def _status(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "status",
        help="show what there is of a dataset, and what is of no use any more",
        description="Trained models fold by fold (kind, method, seed, state, Dice), stores of teachers' predictions, "
        "and what can be thrown away, with its size. Reads only: nothing is changed or deleted.",
    )
    parser.add_argument("-d", nargs="+", required=True, metavar="DATASET", help="dataset ids or names")


def _doctor(subparsers: Any) -> None:
    subparsers.add_parser(
        "doctor",
        help="check this installation",
        description="Show versions, trainer discovery, nnU-Net's paths, the device and the teachers of every dataset. "
        "Exits with 1 where something would stop a training, and prints the line that mends it.",
    )


def _demo(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "demo",
        help="distil a student on bundled real data",
        description="Install a bundled teacher, train a student alone and a distilled student with nnU-Net's own "
        "commands on bundled hippocampus cases, and compare them. Runs on a CPU; nothing of yours is touched.",
        epilog="The data are 32 cases of the Medical Segmentation Decathlon's hippocampus task (CC-BY-SA 4.0, see "
        "ATTRIBUTION.md in the demo's data folder).",
    )
    parser.add_argument("-o", type=Path, default=Path("demo_output"), metavar="FOLDER", help="default: demo_output")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.add_argument(
        "--train-teacher",
        action="store_true",
        help="train the teacher first, on the demo's 24 cases; takes several times as long",
    )
    parser.add_argument("--smoke", action="store_true", help="two training iterations only, to check the installation")
