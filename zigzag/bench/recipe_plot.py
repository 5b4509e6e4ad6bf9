"""A picture of the suite `recipes`, light and dark: what a verification gives against what it costs (matplotlib)."""

from collections.abc import Mapping, Sequence
from functools import partial
from math import log2
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from zigzag.bench.recipes import PLAIN, TEXTS, Row
from zigzag.files.pictures import Shade, draw_both

COLUMNS = 2  # panels side by side
Point = tuple[str, float, float]  # method, cost, tokens
WIDE, HIGH = 0.55, 0.11  # room of a name, in doublings


def gains(rows: Sequence[Row]) -> dict[str, list[Point]]:
    """text -> (method, cost, tokens) of rounds at temperature 0 with one row; a plain step's cost is 1."""
    found: dict[str, list[Point]] = {}
    alone = [row for row in rows if row.temperature == 0 and row.rows == 1]
    for text in TEXTS:
        plain = next((row for row in alone if (row.text, row.method) == (text, PLAIN)), None)
        for row in alone if plain is not None else ():
            if row.text == text and row.tokens_per_verification is not None and plain is not None:
                slower = (row.seconds / row.new_tokens) / (plain.seconds / plain.new_tokens)
                cost = row.tokens_per_verification * slower
                found.setdefault(text, []).append((row.method, cost, row.tokens_per_verification))
    return found


def draw(rows: Sequence[Row], path: Path) -> bool:
    """A panel for each text; what lies above the line is faster than plain decoding. False, and no file, for none."""
    if made := gains(rows):
        draw_both(path, partial(_gains, made), dpi=110)
    return bool(made)


def _gains(made: Mapping[str, Sequence[Point]], shade: Shade) -> Figure:
    down = -(-len(made) // COLUMNS)
    figure = Figure(figsize=(6.4 * min(COLUMNS, len(made)), 5.2 * down), layout="constrained")
    grid = list(figure.subplots(down, min(COLUMNS, len(made)), squeeze=False).flat)
    for axes, (text, points) in zip(grid, made.items(), strict=False):
        _panel(axes, text, points, shade)
    for axes in grid[len(made) :]:
        axes.set_axis_off()
    return figure


def _panel(axes: Axes, text: str, points: Sequence[Point], shade: Shade) -> None:
    costs, tokens = [cost for _, cost, _ in points], [each for _, _, each in points]
    line = [0.8, 1.1 * max(*costs, *tokens)]
    axes.plot(line, line, color=shade.ink, ls="--", lw=1)
    named: list[tuple[float, float]] = []
    for method, cost, each in sorted(points, key=lambda point: point[1] / point[2]):
        color = shade.good if each > cost else shade.bad
        axes.plot(cost, each, "o", color=color, ms=4)
        if all(abs(log2(cost / x)) > WIDE or abs(log2(each / y)) > HIGH for x, y in named):  # the table has the others
            axes.annotate(method, (cost, each), fontsize=7, xytext=(3, 2), textcoords="offset points")
            named.append((cost, each))
    for set_scale, axis in ((axes.set_xscale, axes.xaxis), (axes.set_yscale, axes.yaxis)):
        set_scale("log", base=2)
        axis.set_major_formatter(FuncFormatter(lambda value, place: f"{value:g}"))
    axes.set(title=text, xlabel="cost of a verification and its drafts, plain steps", ylabel="tokens a verification")
