"""The page's plots, as inline SVG."""

import io
import math
import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import matplotlib as mpl
from markupsafe import Markup, escape
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from matplotlib.transforms import Bbox

from nnunetv2_kd.formatting import format_count
from nnunetv2_kd.leaderboard.board import Board, Entry
from nnunetv2_kd.leaderboard.origin import ALONE, DISTILLED, STOCK, TEACHER

# Okabe and Ito's colours, which people with any colour vision can tell apart; marker shapes show the same
STYLE = {TEACHER: ("#000000", "s"), DISTILLED: ("#0072B2", "o"), ALONE: ("#D55E00", "^"), STOCK: ("#009E73", "D")}
LABEL_GAP, LABEL_HEIGHT, MOST_STEPS = 8, 11, 8  # points, points, and how often a label may be lifted
SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "nnunetv2_kd",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def dice_against(board: Board, cost: Callable[[Entry], float | None], heading: str, name: str) -> Markup:
    """Plot Dice against a cost, with a line through the Pareto front; empty if the cost is not known.

    Args:
        board: the models.
        cost: of an entry, greater than 0, or None.
        heading: of the axis.
        name: unique among the page's figures.
    """
    entries = [entry for entry in board.ranked if cost(entry)]
    if not entries:
        return Markup("")
    front = board.pareto_front(cost)
    with mpl.rc_context(SETTINGS):
        figure = Figure(figsize=(7, 4.2), layout="constrained")
        axes = figure.subplots()
        axes.plot(
            [cost(e) or 0 for e in front],
            [e.scores.mean_dice for e in front],
            color="#777777",
            linewidth=1,
            drawstyle="steps-post",
            zorder=1,
            label="Pareto front",
        )
        for kind, (colour, marker) in STYLE.items():
            mine = [entry for entry in entries if entry.kind == kind]
            if mine:
                axes.scatter(
                    [cost(e) or 0 for e in mine],
                    [e.scores.mean_dice for e in mine],
                    c=colour,
                    marker=marker,
                    s=42,
                    alpha=0.8,
                    label=kind,
                    zorder=2,
                )
        low, high = axes.get_ylim()
        axes.set_ylim(low - 0.05 * (high - low), high + 0.1 * (high - low))
        costs = [cost(entry) or 0 for entry in entries]
        if max(costs) > 5 * min(costs):
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.margins(x=0.15)
        labels = []
        for i, entry in enumerate(front):  # above the point, where there is no model: it would be on the front instead
            side = "left" if i == 0 else "right" if i == len(front) - 1 else "center"
            labels.append(
                axes.annotate(
                    entry.short_name,
                    (cost(entry) or 0, entry.scores.mean_dice),
                    xytext=(0, LABEL_GAP),
                    textcoords="offset points",
                    ha=side,
                    fontsize=8,
                    arrowprops={"arrowstyle": "-", "color": "#999999", "linewidth": 0.6, "shrinkA": 0, "shrinkB": 3},
                )
            )
        shown = format_count if max(costs) >= 1e5 else "{:g}".format
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: shown(value).replace(".00", "")))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set(xlabel=heading, ylabel="mean Dice")
        axes.grid(alpha=0.25)
        figure.legend(
            fontsize=8, loc="outside lower center", ncols=4, frameon=False
        )  # at a place where it covers no model
        _lift_apart(figure, axes, labels, [(cost(e) or 0, e.scores.mean_dice) for e in entries])
        models = "; ".join(f"{e.short_name}: {e.scores.mean_dice:.3f} at {format_count(cost(e) or 0)}" for e in front)
        return _svg(figure, f"Mean Dice against {heading}. Models that no other beats, cheapest first: {models}.", name)


def _lift_apart(figure: Figure, axes: Any, labels: Sequence[Annotation], points: Sequence[tuple[float, float]]) -> None:
    """Lift labels until none covers another label, a point, or the line through the labelled points. A thin line
    connects a lifted label to its point."""
    FigureCanvasAgg(figure).draw()  # which places everything
    taken = [Bbox.from_extents(x - 6, y - 6, x + 6, y + 6) for x, y in map(axes.transData.transform, points)]
    corners = [axes.transData.transform(label.xy) for label in labels]
    taken += [Bbox.from_extents(x - 1, low, x + 1, high) for (_, low), (x, high) in pairwise(corners)]
    for label in labels:
        steps = 0
        # a browser's letters may be wider than matplotlib's
        while steps < MOST_STEPS and any(_box(label).overlaps(other) for other in taken):
            steps += 1
            label.set_position((0, LABEL_GAP + steps * LABEL_HEIGHT))
        if label.arrow_patch is not None:
            label.arrow_patch.set_visible(steps > 0)
        taken.append(_box(label))


def _box(label: Annotation) -> Any:
    return Text.get_window_extent(label).expanded(1.15, 1.0)


def per_case(board: Board, name: str) -> Markup:
    """Plot every case's mean Dice: a box per model, with its cases as points; empty if nothing was scored."""
    entries = board.ranked
    if not entries or board.case_means.empty:
        return Markup("")
    values = [board.case_means.loc[entry.name].dropna().to_numpy() for entry in entries]
    with mpl.rc_context(SETTINGS):
        figure = Figure(figsize=(7, 0.9 + 0.32 * len(entries)), layout="constrained")
        axes = figure.subplots()
        axes.boxplot(
            values,
            orientation="horizontal",
            widths=0.6,
            showfliers=False,
            medianprops={"color": "#000000"},
            boxprops={"color": "#777777"},
        )
        for position, (entry, mine) in enumerate(zip(entries, values, strict=True), start=1):
            spread = [position + 0.22 * math.sin(2.4 * i) for i in range(len(mine))]  # the same every time
            colour, marker = STYLE[entry.kind]
            axes.scatter(mine, spread, s=9, c=colour, marker=marker, alpha=0.45, linewidths=0, zorder=3)
        axes.set_yticks(range(1, len(entries) + 1), [entry.short_name for entry in entries], fontsize=8)
        axes.invert_yaxis()
        axes.set_xlabel("mean Dice of a case")
        axes.grid(axis="x", alpha=0.25)
        return _svg(figure, f"Mean Dice of every case of {len(entries)} models, best model on top.", name)


def _svg(figure: Figure, description: str, name: str) -> Markup:
    """The figure as an element of a page, with a description for readers who cannot see it."""
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # all of matplotlib's figures use the same ids, but an id must be unique on a page
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text)
    return Markup(text.replace("<svg ", f'<svg role="img" aria-label="{escape(description)}" ', 1))
