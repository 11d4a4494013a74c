"""``nnUNetv2_kd status``: what exists for a dataset, and what is no longer needed. Reads only."""

import argparse
import shlex
from collections.abc import Iterator
from itertools import groupby

from rich.text import Text

from nnunetv2_kd.formatting import NOTHING
from nnunetv2_kd.leaderboard.overview import FoldState, Overview, format_bytes, overview_of
from nnunetv2_kd.nnunet.datasets import how_to_train, known_dataset
from nnunetv2_kd.terminal import plain_console


def run(args: argparse.Namespace) -> int:
    console = plain_console()
    for dataset in dict.fromkeys(known_dataset(name) for name in args.d):
        for line in lines_of(overview_of(dataset)):
            console.print(Text(line), soft_wrap=True)
    return 0


def lines_of(found: Overview) -> Iterator[str]:
    """Every model with its folds, every store, and what can be deleted."""
    yield f"{found.dataset}" if found.folds else f"{found.dataset}: no model is trained. {how_to_train(found.dataset)}"
    for model, folds in groupby(found.folds, key=lambda fold: (fold.model, fold.kind, fold.method)):
        yield f"  {model[0]}: {', '.join(part for part in model[1:] if part)}"
        yield from (f"    {_of_fold(fold)}" for fold in folds)
    for store in found.stores:
        yield (
            f"  store {store.name}: {store.finished} of {store.cases} cases, {format_bytes(store.size)}, of "
            f"{store.teachers}"
        )
    if found.useless:
        yield "  Can be deleted:"
    for what in found.useless:
        yield f"    {what.why}, {format_bytes(what.size)}: rm -r {shlex.quote(str(what.place))}"


def _of_fold(fold: FoldState) -> str:
    dice = NOTHING if fold.dice is None else f"{fold.dice:.3f}"
    seed = "" if fold.seed is None else f"seed {fold.seed}"
    return f"fold {fold.fold:<4} Dice {dice:<6} {seed:<8} {format_bytes(fold.size):>10}  {fold.state}"
