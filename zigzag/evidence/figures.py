"""Pictures of scores, plans and evidence, for light and for dark pages (matplotlib)."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from zigzag.files.pictures import Shade, draw_both
from zigzag.plans.layers import LayerPlan
from zigzag.plans.scores import HeadScores

Points = Mapping[str, Sequence[tuple[int, float, float, float]]]
DPI = 130


def heat_map(scores: HeadScores, plan: LayerPlan, path: Path) -> list[Path]:
    """Head scores as colours, one column a layer; the full layers of the plan are framed and named."""
    return draw_both(path, partial(_heat_map, scores, plan), DPI)


def _heat_map(scores: HeadScores, plan: LayerPlan, shade: Shade) -> Figure:
    values = scores.values.T
    figure = Figure(figsize=(0.28 * values.shape[1] + 2.2, 0.28 * values.shape[0] + 1.9), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(values, aspect="auto", cmap="viridis")
    for layer in plan.full_layers:
        frame = Rectangle((layer - 0.5, -0.5), 1, values.shape[0], fill=False, ec=shade.full, lw=2.5)
        frame.set_clip_on(False)
        axes.add_patch(frame)
    axes.set_xticks(range(values.shape[1]))
    axes.set_xticklabels([str(i) for i in range(values.shape[1])], fontsize=7)
    for layer in plan.full_layers:
        axes.get_xticklabels()[layer].set(color=shade.full, fontweight="bold")
    axes.set_yticks(range(values.shape[0]))
    axes.set(xlabel="layer (framed: keeps its full cache)", ylabel="KV head")
    axes.set_title(f"{scores.method}: {plan.num_full} full, {plan.num_layers - plan.num_full} streaming", fontsize=10)
    figure.colorbar(image, ax=axes, label="score")
    return figure


def by_share(lines: Points, path: Path, *, ylabel: str, title: str, reference: float | None = None) -> list[Path]:
    """One line a name: (streaming layers, value, low, high), the interval as a band."""
    return draw_both(path, partial(_by_share, lines, ylabel, title, reference), DPI)


def _by_share(lines: Points, ylabel: str, title: str, reference: float | None, shade: Shade) -> Figure:
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name, points in lines.items():
        x, value, low, high = (list(column) for column in zip(*sorted(points), strict=True))
        (line,) = axes.plot(x, value, marker="o", ms=4, label=name)
        axes.fill_between(x, low, high, color=line.get_color(), alpha=0.15, lw=0)
    if reference is not None:
        axes.axhline(reference, color=shade.ink, ls=":", lw=1, label="full attention")
    axes.set(xlabel="streaming layers", ylabel=ylabel, title=title)
    axes.legend(loc="best", fontsize=8, frameon=False)  # said, or a slow machine is warned
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def by_bytes(groups: Points, path: Path, *, ylabel: str, title: str, chance: float | None) -> list[Path]:
    """Points by kind of plan: (bytes of keys and values, value, low, high), the interval as a bar."""
    return draw_both(path, partial(_by_bytes, groups, ylabel, title, chance), DPI)


def _by_bytes(groups: Points, ylabel: str, title: str, chance: float | None, shade: Shade) -> Figure:
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name, points in groups.items():
        size, value, low, high = (np.array(column, dtype=float) for column in zip(*points, strict=True))
        reach = np.stack([value - low, high - value]).clip(min=0)
        axes.errorbar(size / 2**20, value, yerr=reach, fmt="o", ms=5, capsize=3, label=name, alpha=0.8)
    if chance is not None:
        axes.axhline(chance, color=shade.ink, ls=":", lw=1, label="chance")
    axes.set(xlabel="keys and values, MiB", ylabel=ylabel, title=title)
    axes.legend(loc="best", fontsize=8, frameon=False)  # said, or a slow machine is warned
    axes.spines[["top", "right"]].set_visible(False)
    return figure
