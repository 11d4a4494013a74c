"""Many inputs of every kind: ``python tests/fuzz/soak.py [INPUTS]``. Prints how many were run, refused and taken; ends
with 1 where anything but a `KDError` came out, and shows the input."""

import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings

from nnunetv2_kd.errors import KDError
from tests.fuzz.targets import TARGETS

LONGEST = 20_000  # characters of a refusal
SLOW = 10.0  # seconds for one input


def soak(name: str, count: int) -> tuple[Counter[str], dict[str, str]]:
    """How the inputs of one kind ended, and what escaped: reason to traceback."""
    target, ended, escaped = TARGETS[name], Counter[str](), dict[str, str]()

    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(value=target.inputs)
    def run(value: Any) -> None:
        started = time.monotonic()
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
        if time.monotonic() - started > SLOW:
            ended["slow"] += 1
            escaped.setdefault(f"slow, {name}", f"{value!r:.2000}")

    run()
    return ended, escaped


def main() -> int:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    names = sys.argv[2:] or list(TARGETS)
    whole, escapes = Counter[str](), dict[str, str]()
    for name in names:
        started = time.monotonic()
        ended, escaped = soak(name, -(-count // len(names)))
        whole += ended
        escapes |= escaped
        told = ", ".join(f"{number} {how}" for how, number in sorted(ended.items()))
        print(
            f"{name}: {sum(ended.values()) - ended['slow']} inputs, {told}; {time.monotonic() - started:.0f} s",
            flush=True,
        )
    told = ", ".join(f"{number} {how}" for how, number in sorted(whole.items()))
    print(f"all: {sum(whole.values()) - whole['slow']} inputs, {told}")
    for where, shown in escapes.items():
        print(f"\n{where}\n{shown}")
    return 1 if escapes else 0


if __name__ == "__main__":
    sys.exit(main())
