"""Pictures of rows: latency against context, log axes, for light and for dark pages (matplotlib)."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from zigzag.bench.cases import Row
from zigzag.bench.report import is_peer, words
from zigzag.files.pictures import Shade, draw_both

CONTEXT = ("keys", "context", "tokens")  # labels that may be the horizontal axis, the first that there is
COLUMNS = 2  # panels side by side
STYLES = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">")


def panels(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows by all labels but the context, in words; only what was measured at several contexts."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        if row.best is not None and not row.note and axis(row):
            rest = words({name: value for name, value in row.labels.items() if name != axis(row)})
            found.setdefault(f"{row.suite}: {rest}", []).append(row)
    return {title: some for title, some in found.items() if len({context(row) for row in some}) > 1}


def axis(row: Row) -> str:
    """The label that is the horizontal axis; empty if there is none."""
    return next((name for name in CONTEXT if name in row.labels), "")


def context(row: Row) -> int:
    return int(row.labels[axis(row)])


def latency(rows: Sequence[Row], path: Path) -> bool:
    """A panel for each shape, a line for each method (others' thin), the floor dashed.

    False, and no file, if no shape has several contexts.
    """
    if made := panels(rows):
        draw_both(path, partial(_latency, made), dpi=110)
    return bool(made)


def _latency(made: Mapping[str, Sequence[Row]], shade: Shade) -> Figure:
    across = min(COLUMNS, len(made))
    down = -(-len(made) // across)
    figure = Figure(figsize=(4.6 * across + 2.2, 3.9 * down), layout="constrained")
    grid = list(figure.subplots(down, across, squeeze=False).flat)
    methods = list(dict.fromkeys(row.method for some in made.values() for row in some))
    handles: dict[str, Any] = {}
    for axes, (title, some) in zip(grid, made.items(), strict=False):
        handles |= _panel(axes, title, some, methods, shade.ink)
    for axes in grid[len(made) :]:
        axes.set_axis_off()
    figure.legend(handles.values(), handles.keys(), loc="outside right upper", fontsize=9, frameon=False)
    return figure


def _panel(axes: Axes, title: str, rows: Sequence[Row], methods: Sequence[str], ink: str) -> dict[str, Any]:
    """Draws it; the lines by name."""
    lines: dict[str, Any] = {}
    for place, method in enumerate(methods):
        points = sorted((context(row), row.best) for row in rows if row.method == method)
        if points:
            style: dict[str, Any] = {"color": f"C{place % 10}", "marker": STYLES[place % len(STYLES)], "ms": 4}
            (lines[method],) = axes.plot(*zip(*points, strict=True), lw=1 if is_peer(method) else 2, **style)
    floor = sorted({(context(row), row.floor) for row in rows})
    (lines["floor"],) = axes.plot(*zip(*floor, strict=True), color=ink, ls="--", lw=1.2)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    ticks = sorted({context(row) for row in rows})
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, place: f"{value:,.10g}"))
    axes.set(xlabel=axis(rows[0]), ylabel="µs a call")
    axes.set_title(title, fontsize=9)
    axes.grid(alpha=0.25, lw=0.5)
    axes.spines[["top", "right"]].set_visible(False)
    return lines
