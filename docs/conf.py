"""The site, out of these pages and the docstrings: `make docs` builds it; a warning is an error there."""

import re
from importlib import metadata

from sphinx.application import Sphinx

project = "zigzag"
release = metadata.version("zigzag-attention")
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.viewcode", "sphinx_copybutton"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 4
default_role = "literal"
autodoc_typehints = "none"  # signatures have them, docstrings the shapes
autodoc_member_order = "bysource"
html_theme = "furo"
html_title = "zigzag"

NAMES = re.compile(r"(\w+(?:, \w+)*): (.*)")


def definitions(lines: list[str]) -> list[str]:
    """A docstring's lines with each `name, name: text` as an entry of a definition list."""
    written: list[str] = []
    inside = False
    for line in lines:
        if found := NAMES.fullmatch(line):
            written += ["", ", ".join(f"``{name}``" for name in found[1].split(", ")), f"    {found[2]}"]
            inside = True
        elif inside and line.startswith("    "):
            written.append(f"    {line.strip()}")
        else:
            written += ["", line] if inside and line else [line]
            inside = False
    return written


def setup(app: Sphinx) -> None:
    def rewrite(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
        lines[:] = definitions(lines)

    app.connect("autodoc-process-docstring", rewrite)
