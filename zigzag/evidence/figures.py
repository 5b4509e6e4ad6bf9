"""Pictures of scores, plans and evidence (matplotlib)."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from zigzag.plans.layers import LayerPlan
from zigzag.plans.scores import HeadScores

INK, FULL, STREAMING = "#222222", "#c2410c", "#94a3b8"
matplotlib.rcParams["svg.hashsalt"] = "zigzag"  # the same picture gives the same file


def heat_map(scores: HeadScores, plan: LayerPlan, path: Path) -> None:
    """Head scores as colours, one column a layer; the full layers of the plan are framed and named."""
    values = scores.values.T
    figure = Figure(figsize=(0.28 * values.shape[1] + 2.2, 0.28 * values.shape[0] + 1.9), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(values, aspect="auto", cmap="viridis")
    for layer in plan.full_layers:
        frame = matplotlib.patches.Rectangle((layer - 0.5, -0.5), 1, values.shape[0], fill=False, ec=FULL, lw=2.5)
        frame.set_clip_on(False)
        axes.add_patch(frame)
    axes.set_xticks(range(values.shape[1]))
    axes.set_xticklabels([str(i) for i in range(values.shape[1])], fontsize=7)
    for layer in plan.full_layers:
        axes.get_xticklabels()[layer].set(color=FULL, fontweight="bold")
    axes.set_yticks(range(values.shape[0]))
    axes.set(xlabel="layer (framed: keeps its full cache)", ylabel="KV head")
    axes.set_title(f"{scores.method}: {plan.num_full} full, {plan.num_layers - plan.num_full} streaming", fontsize=10)
    figure.colorbar(image, ax=axes, label="score")
    _save(figure, path)


def by_share(
    lines: Mapping[str, Sequence[tuple[int, float, float, float]]],
    path: Path,
    *,
    ylabel: str,
    title: str,
    reference: float | None = None,
) -> None:
    """One line a name: (streaming layers, value, low, high), the interval as a band."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name, points in lines.items():
        x, value, low, high = (list(column) for column in zip(*sorted(points), strict=True))
        (line,) = axes.plot(x, value, marker="o", ms=4, label=name)
        axes.fill_between(x, low, high, color=line.get_color(), alpha=0.15, lw=0)
    if reference is not None:
        axes.axhline(reference, color=INK, ls=":", lw=1, label="full attention")
    axes.set(xlabel="streaming layers", ylabel=ylabel, title=title)
    axes.legend(fontsize=8, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    _save(figure, path)


def by_bytes(
    groups: Mapping[str, Sequence[tuple[int, float, float, float]]],
    path: Path,
    *,
    ylabel: str,
    title: str,
    chance: float | None,
) -> None:
    """Points by kind of plan: (bytes of keys and values, value, low, high), the interval as a bar."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name, points in groups.items():
        size, value, low, high = (np.array(column, dtype=float) for column in zip(*points, strict=True))
        reach = np.stack([value - low, high - value]).clip(min=0)
        axes.errorbar(size / 2**20, value, yerr=reach, fmt="o", ms=5, capsize=3, label=name, alpha=0.8)
    if chance is not None:
        axes.axhline(chance, color=INK, ls=":", lw=1, label="chance")
    axes.set(xlabel="keys and values, MiB", ylabel=ylabel, title=title)
    axes.legend(fontsize=8, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130, metadata={"Software": None} if path.suffix == ".png" else None)
