"""Scores and plans as maps in the terminal: a column a layer, a row a KV head, and under them what the plan says."""

from rich.console import Console
from rich.text import Text

from zigzag.plans.layers import LayerPlan
from zigzag.plans.scores import HeadScores

# A shade says it without colours, too; a terminal's theme makes the named ones legible on dark and on light.
FROM = (0.0, 0.05, 0.15, 0.3, 0.6)  # shares of the largest score at which the shades begin
STYLES = ("dim", "blue", "cyan", "yellow", "bold red")
SHADES, PLAIN = "·░▒▓█", ".-+x#"  # the second for outputs that cannot hold the first
FULL, STREAMS = "bold magenta", "dim"


def show_scores(console: Console, scores: HeadScores, plan: LayerPlan | None = None) -> None:
    """Print the map, in several pieces where the terminal is narrow."""
    shades = SHADES if console.encoding.startswith("utf") else PLAIN
    console.print(score_map(scores, plan, width=console.width, shades=shades), highlight=False)


def score_map(scores: HeadScores, plan: LayerPlan | None = None, *, width: int, shades: str = SHADES) -> Text:
    """The map as text of lines that fit into `width`, and a legend.

    plan: of as many layers; adds a row, F full and s streaming
    """
    names = ["layer", *(f"head {head}" for head in range(scores.num_kv_heads)), "plan"]
    margin = max(map(len, names)) + 2
    step = _columns(width - margin)
    text = Text()
    for begin in range(0, scores.num_layers, step):
        layers = range(begin, min(begin + step, scores.num_layers))
        text.append(names[0].ljust(margin) + _ruler(layers) + "\n", "dim")
        for head, name in enumerate(names[1:-1]):
            text.append(name.ljust(margin))
            for layer in layers:
                level = level_of(scores, layer, head)
                text.append(shades[level], STYLES[level])
            text.append("\n")
        if plan is not None:
            text.append(names[-1].ljust(margin))
            for layer in layers:
                streams = plan.is_streaming(layer)
                text.append("s" if streams else "F", STREAMS if streams else FULL)
            text.append("\n")
    return text.append(_legend(scores, shades))


def level_of(scores: HeadScores, layer: int, head: int) -> int:
    """0 to 4, the last of FROM that the score reaches; negative scores, and all where none is positive, have 0."""
    largest, score = scores.values.max(), scores.values[layer, head]
    if score <= 0:
        return 0
    return max(level for level, share in enumerate(FROM) if score >= share * largest)


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


def _legend(scores: HeadScores, shades: str) -> str:
    steps = ", ".join(f"{shade} {share:.0%}" for shade, share in zip(shades[1:], FROM[1:], strict=True))
    return f"{shades[0]} less, {steps} or more of the largest score, {scores.values.max():.3g}"
