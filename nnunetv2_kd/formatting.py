"""Numbers and tables as text, written the same way everywhere."""

from collections.abc import Sequence
from typing import Any

NOTHING = "–"


def format_count(count: float) -> str:
    """A count with two decimals and a unit prefix.

    >>> format_count(1402835), format_count(512)
    ('1.40 M', '512')
    """
    for factor, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(count) >= factor:
            return f"{count / factor:.2f}{unit}"
    return f"{count:.0f}"


def format_gflops(flops: float) -> str:
    """GFLOPs with two decimals, such as ``2.40``; below 0.1 with two significant digits, such as ``0.0026``.

    >>> format_gflops(2.4e9), format_gflops(2.55e6)
    ('2.40', '0.0026')
    """
    gflops = flops / 1e9
    return f"{gflops:.2f}" if gflops >= 0.1 or gflops == 0 else f"{gflops:.2g}"


def csv_cell(value: Any) -> Any:
    """A value for a CSV file. A name that a spreadsheet would run as a formula gets a leading apostrophe, as OWASP's
    page on CSV injection advises; numbers stay numbers.

    >>> csv_cell("=HYPERLINK(1)"), csv_cell(-1.5)
    ("'=HYPERLINK(1)", -1.5)
    """
    if isinstance(value, str) and value.lstrip().startswith(("=", "+", "-", "@", "\t", "\r", "|", "%")):
        return f"'{value}"
    return value


def markdown_line(values: Sequence[str]) -> str:
    return f"| {' | '.join(values)} |"


def markdown_escaped(text: str) -> str:
    for character in "\\`*_[]|~":
        text = text.replace(character, f"\\{character}")
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("\n", " ")
