"""Whether files may name or contain code. A checkpoint can hold any Python object, and plans name classes that are
imported and called. Both are refused unless the user trusts their origin; one switch allows both."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

VARIABLE = "nnUNet_kd_trust"
HOW = (
    "If you trust where it comes from: --trust for a command of nnUNetv2_kd, 'teacher: {trust: true}' in the options "
    f"file of a training, or {VARIABLE}=1 in front of any command."
)


def is_trusted(trust: bool = False) -> bool:
    """Whether code is allowed: by an option or a flag, or by the environment, which also reaches the processes that a
    command starts."""
    return trust or os.environ.get(VARIABLE, "").strip().lower() in ("1", "true", "t", "yes")


@contextmanager
def trusting(trust: bool) -> Iterator[None]:
    """Within this context, everything is trusted if ``trust`` is True."""
    before = os.environ.get(VARIABLE)
    if trust:
        os.environ[VARIABLE] = "1"
    try:
        yield
    finally:
        if trust and before is None:
            os.environ.pop(VARIABLE, None)
        elif trust and before is not None:
            os.environ[VARIABLE] = before
