"""Pictures as two files, one for light pages and one for dark ones (matplotlib)."""

from collections.abc import Callable
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib
from cycler import cycler
from matplotlib.figure import Figure
from PIL import Image

from zigzag.files.markdown import dark_name

COLOURS = 256  # in a PNG: a third of the bytes of one that has all
matplotlib.rcParams["svg.hashsalt"] = "zigzag"  # the same picture gives the same file


@dataclass(frozen=True)
class Shade:
    """The colours of a picture; settings are matplotlib's own, of what is not drawn by name."""

    ink: str
    full: str
    good: str
    bad: str
    settings: Any = field(default_factory=dict)


LIGHT = Shade(ink="#222222", full="#c2410c", good="#1b7837", bad="#b2182b")
_INK, _PAPER = "#e4e7eb", "#131416"  # the second is the site's dark page
_LINES = "#6aaaf0 #f0a04b #6fcf7f #f0716a #b79af0 #c99a83 #f095d0 #b0b6be #d6d65c #5fd3e0".split()
DARK = Shade(
    ink=_INK,
    full="#fb923c",
    good="#6fcf7f",
    bad="#f0716a",
    settings={
        **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), _PAPER),
        **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), _INK),
        "axes.prop_cycle": cycler(color=_LINES),  # the usual ones, as light as a dark page needs
    },
)


def draw_both(path: Path, draw: Callable[[Shade], Figure], dpi: int) -> list[Path]:
    """Write the picture for light pages to `path`, and the one for dark pages beside it; returns both."""
    paths = [path, path.with_name(dark_name(path.name))]
    path.parent.mkdir(parents=True, exist_ok=True)
    for shade, each in zip((LIGHT, DARK), paths, strict=True):
        with matplotlib.rc_context(shade.settings):  # also while it is saved: names of colours are looked up there
            _save(draw(shade), each, dpi)
    return paths


def _save(figure: Figure, path: Path, dpi: int) -> None:
    if path.suffix != ".png":
        figure.savefig(path, dpi=dpi)
        return
    whole = BytesIO()
    figure.savefig(whole, dpi=dpi, format="png", metadata={"Software": None})  # the same numbers give the same file
    with Image.open(whole) as image:
        image.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True, dpi=(dpi, dpi))
