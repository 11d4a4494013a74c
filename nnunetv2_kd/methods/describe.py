"""The methods and their options as a table, for the docs."""

from typing import Any

from nnunetv2_kd.formatting import markdown_line
from nnunetv2_kd.methods.method import Method

HEADINGS = ("method", "what it compares", "looks at", "options beside `weight`")


def methods_table(methods: tuple[type[Method], ...]) -> str:
    """A Markdown table, one line per method."""
    lines = [markdown_line(HEADINGS), markdown_line(["---"] * len(HEADINGS))]
    lines += [markdown_line([f"`{m.name}`", _first_sentence(m), _looks_at(m), _options(m)]) for m in methods]
    return "\n".join(lines)


def _first_sentence(method: type[Method]) -> str:
    return " ".join((method.__doc__ or "").split()).rstrip(".")


def _looks_at(method: type[Method]) -> str:
    needs = {"logits": method.needs.logits, "features": method.needs.features}
    found = [name for name, wanted in needs.items() if wanted]
    return ", ".join([*found, *(["cosines between regions"] if method.needs.region_cosines else [])])


def _options(method: type[Method]) -> str:
    shown = [
        f"`{name}` {_value(field.default)}{_range(field.metadata)}"
        for name, field in method.model_fields.items()
        if name != "weight"
    ]
    return ", ".join(shown) or "none"


def _value(default: Any) -> str:
    return f"[{', '.join(default)}]" if isinstance(default, tuple) else str(default)


def _range(metadata: list[Any]) -> str:
    limits = {name: getattr(m, name) for m in metadata for name in ("ge", "gt", "le") if hasattr(m, name)}
    if "le" in limits:
        return f" ({limits.get('ge', limits.get('gt', 0)):g} to {limits['le']:g})"
    return ""
