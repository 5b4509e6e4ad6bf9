"""A picture of the suite `recipes`: what a verification gives against what it costs (matplotlib)."""

from collections.abc import Sequence
from math import log2
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from zigzag.bench.recipes import PLAIN, TEXTS, Row

COLUMNS = 2  # panels side by side
WIDE, HIGH = 0.55, 0.11  # room of a name, in doublings


def gains(rows: Sequence[Row]) -> dict[str, list[tuple[str, float, float]]]:
    """text -> (method, cost, tokens) of rounds at temperature 0 with one row; a plain step's cost is 1."""
    found: dict[str, list[tuple[str, float, float]]] = {}
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
    made = gains(rows)
    if not made:
        return False
    down = -(-len(made) // COLUMNS)
    figure = Figure(figsize=(6.4 * min(COLUMNS, len(made)), 5.2 * down), layout="constrained")
    grid = list(figure.subplots(down, min(COLUMNS, len(made)), squeeze=False).flat)
    for axes, (text, points) in zip(grid, made.items(), strict=False):
        _panel(axes, text, points)
    for axes in grid[len(made) :]:
        axes.set_axis_off()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})  # the same rows give the same file
    return True


def _panel(axes: Axes, text: str, points: Sequence[tuple[str, float, float]]) -> None:
    costs, tokens = [cost for _, cost, _ in points], [each for _, _, each in points]
    line = [0.8, 1.1 * max(*costs, *tokens)]
    axes.plot(line, line, color="#222222", ls="--", lw=1)
    named: list[tuple[float, float]] = []
    for method, cost, each in sorted(points, key=lambda point: point[1] / point[2]):
        color = "#1b7837" if each > cost else "#b2182b"
        axes.plot(cost, each, "o", color=color, ms=4)
        if all(abs(log2(cost / x)) > WIDE or abs(log2(each / y)) > HIGH for x, y in named):  # the table has the others
            axes.annotate(method, (cost, each), fontsize=7, xytext=(3, 2), textcoords="offset points")
            named.append((cost, each))
    for set_scale, axis in ((axes.set_xscale, axes.xaxis), (axes.set_yscale, axes.yaxis)):
        set_scale("log", base=2)
        axis.set_major_formatter(FuncFormatter(lambda value, place: f"{value:g}"))
    axes.set(title=text, xlabel="cost of a verification and its drafts, plain steps", ylabel="tokens a verification")
