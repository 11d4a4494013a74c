"""Many inputs of every kind: ``python -m tests.fuzz.soak [INPUTS]``. Prints how many were run, refused and taken; ends
with 1 where anything but a `KDError` came out, and shows the input. In slices of all kinds, so that it can be stopped
at any time."""

import argparse
import sys
import tempfile
import time
import traceback
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

from hypothesis import HealthCheck, Phase, given, seed, settings

from nnunetv2_kd.errors import KDError
from nnunetv2_kd.methods import registry
from tests.fuzz.targets import TARGETS

LONGEST = 20_000  # characters of a refusal
SLOW = 10.0  # seconds of computing for one input
SLICES = 10


def soak(name: str, count: int, first: int = 0) -> tuple[Counter[str], dict[str, str]]:
    """How the inputs of one kind ended, and what escaped: reason to traceback.

    Args:
        first: the seed.
    """
    target, ended, escaped = TARGETS[name], Counter[str](), dict[str, str]()

    @seed(first)
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(value=target.inputs)
    def run(value: Any) -> None:
        started = time.process_time()
        with tempfile.TemporaryDirectory() as folder:
            try:
                target.run(value, Path(folder))
                ended["taken"] += 1
            except KDError as error:
                ended["refused" if len(str(error)) < LONGEST else "refused at length"] += 1
            except Exception as error:
                ended["escaped"] += 1
                frame = traceback.extract_tb(error.__traceback__)[-1]
                where = f"{type(error).__name__} in {Path(frame.filename).name}:{frame.lineno}"
                escaped.setdefault(where, f"{traceback.format_exc()}\n{value!r:.2000}")
        if time.process_time() - started > SLOW:
            ended["slow"] += 1
            escaped.setdefault(f"slow, {name}", f"{value!r:.2000}")

    # what is installed does not change meanwhile, and is looked up for every method of every input
    with mock.patch.object(registry, "entry_points", cache(registry.entry_points)):
        run()
    return ended, escaped


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("inputs", type=int, nargs="?", default=100_000, help="of all kinds together")
    parser.add_argument("kinds", nargs="*", default=list(TARGETS), metavar="KIND", help=f"of: {'; '.join(TARGETS)}")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if unknown := set(args.kinds) - set(TARGETS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    whole, escapes = {name: Counter[str]() for name in args.kinds}, dict[str, str]()
    each = -(-args.inputs // len(args.kinds) // SLICES)
    for number in range(SLICES):
        for name in args.kinds:
            ended, escaped = soak(name, each, args.seed + number)
            whole[name] += ended
            escapes |= escaped
        print(f"{number + 1}/{SLICES}: {told(sum(whole.values(), Counter()))}", flush=True)
    for name, ended in whole.items():
        print(f"{name}: {told(ended)}")
    for where, shown in escapes.items():
        print(f"\n{where}\n{shown}")
    return 1 if escapes else 0


def told(ended: Counter[str]) -> str:
    counts = ", ".join(f"{number} {how}" for how, number in sorted(ended.items()))
    return f"{sum(ended.values()) - ended['slow']} inputs, {counts}"


if __name__ == "__main__":
    sys.exit(main())
