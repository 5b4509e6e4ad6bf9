"""What `zigzag conform` found, as tables op by property, as lines and as JSON."""

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from zigzag.cli.options import print_whole
from zigzag.files.json_files import write_json

SHOWN = {"pass": "pass", "fail": "[red]FAIL[/red]", "known gap": "gap", "stale gap": "[red]stale[/red]"}


def table(cells: Iterable[Any], properties: Collection[str]) -> Table:
    """A row for each op that the backend has; nothing stands where no check was reached."""
    found = {(cell.op, cell.property): SHOWN[cell.result] for cell in cells if cell.result in SHOWN}
    made = Table(box=None, padding=(0, 1, 0, 0), header_style="bold")
    for heading in ("", *properties):
        made.add_column(heading, no_wrap=True)
    for op in dict.fromkeys(op for op, _ in found):
        made.add_row(op, *(found.get((op, name), "") for name in properties))
    return made


def show(cells: Sequence[Any], groups: Iterable[Collection[str]], console: Console) -> None:
    """Tables, one for each group of properties, then what failed and how to repeat it, then gaps."""
    for properties in groups:
        print_whole(console, table(cells, properties))
        console.print()
    missing = list(dict.fromkeys(cell.op for cell in cells if cell.result == "not supported"))
    lines = [f"not supported: {', '.join(missing)}"] * bool(missing)
    for cell in cells:
        name = f"{cell.op}, {cell.property}"
        if cell.result == "fail":
            lines += [f"FAIL {name}: {cell.message}", f"  {cell.test}", *(f"  {line}" for line in cell.example), ""]
        elif cell.result == "known gap":
            lines.append(f"known gap: {name}: {cell.message}")
        elif cell.result == "stale gap":
            lines.append(f"stale gap: {name} does not fail, take it out of the file: {cell.message}")
    for line in lines:
        console.print(escape(line), soft_wrap=True, highlight=False)


def summary(cells: Sequence[Any]) -> str:
    """As in "212 cells: 210 pass, 2 fail; not supported: 5 of 27 ops"."""
    told = [cell for cell in cells if cell.result != "not supported"]
    counts = {name: sum(cell.result == name for cell in told) for name in SHOWN}
    ops, having = ({cell.op for cell in group} for group in (cells, told))
    parts = ", ".join(f"{count} {name}" for name, count in counts.items() if count or name == "pass")
    rest = f"; not supported: {len(ops - having)} of {len(ops)} ops" if ops - having else ""
    return f"{len(told)} cells: {parts}{rest}"


def save(path: Path, cells: Sequence[Any], about: dict[str, Any]) -> None:
    """{**about, "cells": [{"op", "property", "result", "message", "test", "example"}]}"""
    write_json(path, about | {"cells": [vars(cell) for cell in cells]})
