"""A drawing as SVG text: rectangles, lines, circles and words, in the colours of a light or a dark page."""

from dataclasses import dataclass, field
from xml.sax.saxutils import escape

# Blue and orange differ for all kinds of colour vision; backgrounds are the page's own.
PALETTES = {
    "light": {"ink": "#1b1f24", "faint": "#6b727b", "rule": "#c9ced4", "empty": "#eef0f3", "full": "#2563a8",
              "stream": "#c96a12", "on": "#ffffff"},
    "dark": {"ink": "#e4e7eb", "faint": "#98a0aa", "rule": "#4a5058", "empty": "#24282d", "full": "#6aaaf0",
             "stream": "#f0a04b", "on": "#101214"},
}  # fmt: skip


def number(value: float) -> str:
    """At most two decimals, so that the text is the same on every machine."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


@dataclass
class Sheet:
    """A drawing of some width and height; colours are names of a palette."""

    width: float
    height: float
    title: str
    palette: dict[str, str]
    parts: list[str] = field(default_factory=list)

    def box(self, x: float, y: float, w: float, h: float, fill: str, *, opacity: float = 1, edge: str = "") -> None:
        line = f' stroke="{self.palette[edge]}" stroke-width="1.2"' if edge else ""
        colour = self.palette[fill] if fill else "none"
        shade = f' fill-opacity="{number(opacity)}"' if opacity != 1 else ""
        self.parts.append(
            f'<rect x="{number(x)}" y="{number(y)}" width="{number(w)}" height="{number(h)}" rx="1.5" '
            f'fill="{colour}"{shade}{line}/>'
        )

    def line(self, x: float, y: float, to_x: float, to_y: float, colour: str, *, dashed: bool = False) -> None:
        dashes = ' stroke-dasharray="4 3"' if dashed else ""
        self.parts.append(
            f'<line x1="{number(x)}" y1="{number(y)}" x2="{number(to_x)}" y2="{number(to_y)}" '
            f'stroke="{self.palette[colour]}" stroke-width="1.6"{dashes}/>'
        )

    def circle(self, x: float, y: float, radius: float, fill: str, *, edge: str = "rule") -> None:
        self.parts.append(
            f'<circle cx="{number(x)}" cy="{number(y)}" r="{number(radius)}" fill="{self.palette[fill]}" '
            f'stroke="{self.palette[edge]}" stroke-width="1.6"/>'
        )

    def text(
        self, x: float, y: float, words: str, colour: str = "ink", *, size: float = 13, at: str = "start",
        bold: bool = False,
    ) -> None:  # fmt: skip
        """at: which end of the words x is: start, middle or end."""
        weight = ' font-weight="600"' if bold else ""
        self.parts.append(
            f'<text x="{number(x)}" y="{number(y)}" font-size="{number(size)}" text-anchor="{at}"{weight} '
            f'fill="{self.palette[colour]}">{escape(words)}</text>'
        )

    def __str__(self) -> str:
        size = f"{number(self.width)} {number(self.height)}"
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size}" width="{number(self.width)}" '
                f'height="{number(self.height)}" font-family="system-ui, Helvetica, Arial, sans-serif" role="img">',
                f"<title>{escape(self.title)}</title>",
                *self.parts,
                "</svg>\n",
            ]
        )
