"""Each module has its namesake among the tests, or tests/README.md says where it is tested."""

import ast
import re
from collections import Counter
from functools import cache
from pathlib import Path

import test_architecture
from test_architecture import FOLDERS, ROOT, import_graph, python_files

TESTS = ROOT / "tests"
FAMILIES = {path.stem.removeprefix("test_") for path in (TESTS / "parity").glob("test_*.py")}
WITHOUT_CODE = ("__init__", "__main__")


def modules() -> list[str]:
    """`room/module` of every file of a room, as in `running/attach` and `backends/triton/masks`."""
    paths = [path.relative_to(ROOT).with_suffix("").as_posix() for path in python_files(*FOLDERS)]
    names = [name.removeprefix("zigzag/") for name in paths if Path(name).name not in WITHOUT_CODE]
    return [name for name in names if "/" in name]  # the package's own files hand names on


def namesake(module: str, every: list[str]) -> bool:
    """tests/room/test_module.py; an op's family: the parity test; in tests/ itself if no other room has the name."""
    room, _, name = module.rpartition("/")
    alone = Counter(Path(other).name for other in every)[name] == 1
    places = [TESTS / room / f"test_{name}.py", *([TESTS / f"test_{name}.py"] if alone else [])]
    of_family = name in FAMILIES and room.split("/")[0] in ("reference", "ops", "backends")
    return of_family or any(place.is_file() for place in places)


def rows(text: str) -> dict[str, list[str]]:
    """{module: files of tests} of the table under "Where each module is tested"."""
    _, _, part = text.partition("## Where each module is tested")
    found: dict[str, list[str]] = {}
    for modules_of_row, files in re.findall(r"^\| (`.+?) \| (`.+?) \|$", part, flags=re.MULTILINE):
        for module in re.findall(r"`([^`]+)`", modules_of_row):
            assert module not in found, f"{module} has two rows"
            found[module] = re.findall(r"`([^`]+)`", files)
    return found


def faults(every: list[str], table: dict[str, list[str]]) -> list[str]:
    """What is missing, stale or wrong."""
    wrong = [
        f"{one}: neither a test of its name nor a row" for one in every if one not in table and not namesake(one, every)
    ]
    wrong += [f"{one}: no such module" for one in table if one not in every]
    for one in set(table) & set(every):
        texts = [(TESTS / file).read_text(encoding="utf-8") for file in table[one] if (TESTS / file).is_file()]
        wrong += [f"{one}: no file {file}" for file in table[one] if not (TESTS / file).is_file()]
        if not any(re.search(rf"\b{re.escape(word)}\b", text) for text in texts for word in words(one)):
            wrong.append(f"{one}: {', '.join(table[one])} do not speak of it")
    return sorted(wrong)


def words(module: str) -> set[str]:
    """What its tests speak of: its name and what it defines for others, or that of what imports it."""
    sources, graph = read()
    name = f"zigzag.{module.replace('/', '.')}"
    found = {Path(module).name}
    for one in (name, *(other for other, uses in graph.items() if name in uses)):
        defined = (node for node in ast.parse(sources[one]).body if isinstance(node, (ast.FunctionDef, ast.ClassDef)))
        found |= {one, *(node.name for node in defined if not node.name.startswith("_"))}
    return found - {"zigzag"}


@cache
def read() -> tuple[dict[str, str], dict[str, set[str]]]:
    """Every module's source, and what it imports."""
    sources = test_architecture.modules()
    return sources, import_graph(sources)


def test_every_module_is_tested_somewhere() -> None:
    assert faults(modules(), rows((TESTS / "README.md").read_text(encoding="utf-8"))) == []


def test_mirror_check_can_fail() -> None:
    head = "## Where each module is tested\n"
    text = f"{head}| `sizes/page`, `no/such` | `test_sizes.py` |\n| `training/config` | `gone.py` |\n"
    table = rows(text)
    assert table == {"sizes/page": ["test_sizes.py"], "no/such": ["test_sizes.py"], "training/config": ["gone.py"]}
    every = ["sizes/page", "training/config", "sizes/shape", "running/attach", "ops/attention", "files/json_files"]
    assert faults(every, table) == [
        "no/such: no such module",
        "sizes/shape: neither a test of its name nor a row",
        "training/config: gone.py do not speak of it",
        "training/config: no file gone.py",
    ]
    assert faults(["sizes/page"], {"sizes/page": ["ptx.py"]}) == ["sizes/page: ptx.py do not speak of it"]
    assert not namesake("bench/backends", ["bench/backends", "cli/backends"]), "two rooms, one test"
