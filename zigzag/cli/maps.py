"""Scores and plans as maps in the terminal: a column a layer, a row a KV head, and under them what the plan says.

Of a plan with windows of their own: a row a window.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.text import Text

from zigzag.plans.layers import LayerPlan
from zigzag.plans.own_windows import LAYER_LOSSES, layer_losses
from zigzag.plans.scores import HeadScores

# A shade says it without colours, too; a terminal's theme makes the named ones legible on dark and on light.
FROM = (0.0, 0.05, 0.15, 0.3, 0.6)  # shares of the largest score at which the shades begin
STYLES = ("dim", "blue", "cyan", "yellow", "bold red")
SHADES, PLAIN = "·░▒▓█", ".-+x#"  # the second for outputs that cannot hold the first
FULL, STREAMS = "bold magenta", "dim"
NUMBERS = "123456789abcdefghijklmnopqrstuvwxyz"  # of windows, one character each


Row = tuple[str, NDArray[np.float64]]  # its name and a value for each layer
Mark = tuple[str, str]  # a character and its style, of a layer in the plan's row


def show_scores(console: Console, scores: HeadScores, plan: LayerPlan | None = None) -> None:
    """Print the map, in several pieces where the terminal is narrow."""
    console.print(score_map(scores, plan, width=console.width, shades=shades_of(console)), highlight=False)


def show_windows(console: Console, scores: Sequence[HeadScores], plan: LayerPlan) -> None:
    """Print the map of a plan with windows of their own, as `show_scores` does."""
    console.print(window_map(scores, plan, width=console.width, shades=shades_of(console)), highlight=False)


def shades_of(console: Console) -> str:
    return SHADES if console.encoding.startswith("utf") else PLAIN


def score_map(scores: HeadScores, plan: LayerPlan | None = None, *, width: int, shades: str = SHADES) -> Text:
    """The map as text of lines that fit into `width`, and a legend.

    plan: of as many layers; adds a row, F full and s streaming
    """
    rows = [(f"head {head}", scores.values[:, head]) for head in range(scores.num_kv_heads)]
    marks = (
        [("s", STREAMS) if plan.is_streaming(layer) else ("F", FULL) for layer in range(plan.num_layers)]
        if plan
        else []
    )
    return _map(rows, marks, width, shades).append(_legend(float(scores.values.max()), shades, "score"))


def window_map(scores: Sequence[HeadScores], plan: LayerPlan, *, width: int, shades: str = SHADES) -> Text:
    """What such a plan is decided by: a row a window, the narrowest first, with what each layer loses in it.

    One map and not one of each file: losses are compared across windows, so they share a scale, and heads count by
    what the plan's criterion makes of a layer's. The plan's row says F full, or the number of the window
    that was taken.
    """
    windows = sorted(scores, key=lambda each: each.recent)
    rows = [
        (f"{_number(place)}: recent {each.recent}", layer_losses(each, plan.criterion or LAYER_LOSSES[0]))
        for place, each in enumerate(windows)
    ]
    numbers = {each.recent: _number(place) for place, each in enumerate(windows)}
    taken = [plan.window(layer) for layer in range(plan.num_layers)]
    marks = [("F", FULL) if window is None else (numbers[window.recent], STREAMS) for window in taken]
    return _map(rows, marks, width, shades).append(
        _legend(max(float(values.max()) for _, values in rows), shades, "loss")
    )


def _map(rows: Sequence[Row], marks: Sequence[Mark], width: int, shades: str) -> Text:
    """A ruler, the rows as shades of the largest value of all, and the plan's row where there are marks."""
    margin = max(len(name) for name in ("layer", "plan", *(name for name, _ in rows))) + 2
    step, largest = _columns(width - margin), max(float(values.max()) for _, values in rows)
    text = Text()
    for begin in range(0, len(rows[0][1]), step):
        layers = range(begin, min(begin + step, len(rows[0][1])))
        text.append("layer".ljust(margin) + _ruler(layers) + "\n", "dim")
        for name, values in rows:
            text.append(name.ljust(margin))
            for layer in layers:
                level = level_of(values[layer], largest)
                text.append(shades[level], STYLES[level])
            text.append("\n")
        if marks:
            text.append("plan".ljust(margin))
            for layer in layers:
                text.append(*marks[layer])
            text.append("\n")
    return text


def level_of(value: float, largest: float) -> int:
    """0 to 4, the last of FROM that the value reaches; negative values, and all where none is positive, have 0."""
    if value <= 0:
        return 0
    return max(level for level, share in enumerate(FROM) if value >= share * largest)


def _columns(room: int) -> int:
    """Layers in one piece: tens, or fives, where so many fit."""
    for unit in (10, 5):
        if room >= unit:
            return room // unit * unit
    return max(1, room)


def _ruler(layers: range) -> str:
    """The number of every tenth layer over its column, and of the first."""
    places = [" "] * len(layers)
    for layer in layers:
        if (layer % 10 == 0 or layer == layers[0]) and layer - layers[0] + len(str(layer)) <= len(places):
            places[layer - layers[0] : layer - layers[0] + len(str(layer))] = str(layer)
    return "".join(places).rstrip()


def _number(place: int) -> str:
    return NUMBERS[place : place + 1] or "+"


def _legend(largest: float, shades: str, what: str) -> str:
    steps = ", ".join(f"{shade} {share:.0%}" for shade, share in zip(shades[1:], FROM[1:], strict=True))
    return f"{shades[0]} less, {steps} or more of the largest {what}, {largest:.3g}"
