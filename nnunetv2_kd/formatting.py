"""Numbers and tables as text, the same everywhere."""

from collections.abc import Sequence
from typing import Any

NOTHING = "–"


def format_count(count: float) -> str:
    """``1402835`` to ``1.40 M``, and so on."""
    for factor, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(count) >= factor:
            return f"{count / factor:.2f}{unit}"
    return f"{count:.0f}"


def format_gflops(flops: float) -> str:
    """``2.4e9`` to ``2.40``; below a tenth two digits that count: ``2.55e6`` to ``0.0026``."""
    gflops = flops / 1e9
    return f"{gflops:.2f}" if gflops >= 0.1 or gflops == 0 else f"{gflops:.2g}"


def csv_cell(value: Any) -> Any:
    """A value for a CSV file. A name that a spreadsheet would take for a formula and run gets an apostrophe in front of
    it, as OWASP's page on CSV injection advises; numbers stay numbers."""
    if isinstance(value, str) and value.lstrip().startswith(("=", "+", "-", "@", "\t", "\r", "|", "%")):
        return f"'{value}"
    return value


def markdown_line(values: Sequence[str]) -> str:
    return f"| {' | '.join(values)} |"


def markdown_escaped(text: str) -> str:
    for character in "\\`*_[]|~":
        text = text.replace(character, f"\\{character}")
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("\n", " ")
