"""Files as a stranger, a broken disk or a tired user leaves them: mutations of good ones."""

import json
from copy import deepcopy
from typing import Any

from hypothesis import strategies as st

NAMES = st.sampled_from(
    [
        *("", ".", "..", "../../x", "/etc/passwd", "a/b", "a\\b", "CON", "~nobody/x", "=1+1", "<b>", "[/red]"),
        *("os.system", "torch.serialization.os.system", "torch.hub.load", "builtins.eval"),
        *("x" * 300, "é†–", "\x00", "\x1b[31m", "\ud800"),
    ]
)
NUMBERS = st.one_of(
    st.sampled_from([0, -1, 1, 2, 2**31, 2**63, 10**30, -(10**30), 1e-320, 1e308, float("nan"), float("inf")]),
    st.integers(-5, 40),
    st.floats(),
)
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, NAMES, st.text(max_size=8))
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES | st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)


def places(value: Any, before: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of everything inside plain values."""
    found = [before]
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, (list, tuple)) else ()
    for key, entry in inside:
        found += places(entry, (*before, key))
    return found


@st.composite
def mutated(draw: Any, good: Any) -> Any:
    """Plain values with up to three of them replaced, removed, repeated or added."""
    value = deepcopy(good)
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.sampled_from(places(value)))
        if not place:
            if draw(st.integers(0, 19)) == 0:
                return draw(VALUES)
            continue
        parent = value
        for key in place[:-1]:
            parent = parent[key]
        _change(draw, parent, place[-1])
    return value


def _change(draw: Any, parent: Any, key: Any) -> None:
    how = draw(st.sampled_from(["replace", "replace", "replace", "remove", "repeat", "add"]))
    if how == "replace":
        parent[key] = draw(VALUES)
    elif how == "remove":
        del parent[key]
    elif isinstance(parent, list):
        parent.insert(key, deepcopy(parent[key]) if how == "repeat" else draw(VALUES))
    else:
        parent[draw(NAMES | st.text(max_size=6))] = deepcopy(parent[key]) if how == "repeat" else draw(VALUES)


@st.composite
def mutated_bytes(draw: Any, good: bytes) -> bytes:
    """Bytes with some flipped, cut, repeated or put in."""
    content = bytearray(good)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(content) - 1)))
        how = draw(st.sampled_from(["flip", "flip", "cut", "drop", "insert", "zero"]))
        length = draw(st.integers(1, 40))
        if how == "flip" and content:
            content[at] ^= 1 << draw(st.integers(0, 7))
        elif how == "cut":
            del content[at:]
        elif how == "drop":
            del content[at : at + length]
        elif how == "insert":
            content[at:at] = draw(st.binary(max_size=40))
        else:
            content[at : at + length] = bytes(min(length, len(content) - at))
    return bytes(content)


def json_text(value: Any) -> str:
    """As JSON, with Python's NaN and lone halves of characters, which other programs write too."""
    return json.dumps(value)


YAML = st.one_of(
    st.text(max_size=60),
    st.lists(
        st.sampled_from(
            [
                *("epochs: yes", "seed: 1", "seed: 2", "terms: {voxel_kl: {temperature: 1e-320}}"),
                *("a: &a [1]", "b: *a", "<<: *a", "teacher: {folder: ~nobody/x}", "student: {width: .inf}"),
                *("? [1, 2]\n: 3", "epochs: 0x10", "- 1", "!!python/object/apply:os.system ['true']"),
                *("teacher:\n  fold: 1\n  fold: 2", "%TAG ! x", "---", "epochs: 1_000", "name: 2024-01-01"),
                *("ema: 0o9", "key: " + "9" * 500, "[" * 60, "a: {" * 60, "\t"),
            ]
        ),
        max_size=6,
    ).map("\n".join),
)
