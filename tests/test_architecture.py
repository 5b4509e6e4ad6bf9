"""The rooms and their arrows (docs/architecture.md), the links, and what `import zigzag` may load."""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from graphlib import CycleError, TopologicalSorter
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("reference", "backends", "zigzag")
MAX_LINES = 400  # a longer file is split by op
HEAVY = ("torch", "transformers", "typer", "rich", "matplotlib")
ONLY_CLI = ("typer", "rich")

# What a backend's folder may import besides zigzag.reference and zigzag.backends.
LIBRARIES = {
    "torch": ("torch", "numpy"),
    "triton": ("triton", "torch", "numpy"),
    "cupy": ("cupy", "numpy"),
    "eager": ("numpy",),
}

# Rooms by floor: a room may use those of the floors below, never its own floor's or a higher one's.
FLOORS = (
    {"version", "defaults", "reference"},
    {"backends"},
    {"ops"},
    {"files"},
    {"plans"},
    {"models", "caches"},
    {"sizes", "running"},
    {"measuring", "generation"},
    {"chat", "recipes", "serving"},
    {"evidence"},
    {"bench", "training"},
    {"cli"},
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
NOT_BELOW = {
    "sizes": {"plans", "models"},
    "serving": {"plans", "ops"},
}  # rooms that may use these alone, of zigzag's own


def foreign_imports(source: str, allowed: tuple[str, ...]) -> list[str]:
    """Imported modules that are neither allowed, nor of the standard library, nor siblings (`from .x`)."""
    names: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level > 1:
            names.append("." * node.level + (node.module or ""))
        elif isinstance(node, ast.ImportFrom) and node.module == "zigzag":
            names += [f"zigzag.{alias.name}" for alias in node.names]  # `from zigzag import ops`
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.append(node.module or "")
    free = [name for name in names if name.partition(".")[0] not in sys.stdlib_module_names]
    return [name for name in free if not any(name == a or name.startswith(a + ".") for a in allowed)]


def allowed_imports(path: Path) -> tuple[str, ...]:
    """Of a file of reference/ or backends/."""
    top, *folders = path.relative_to(ROOT).parts[:-1]
    if top == "reference":
        return ("numpy", "zigzag.reference")
    if not folders:
        return ("zigzag.reference", "zigzag.backends.registry")
    own = {"eager": (), "torch": ("eager",), "cupy": ("eager",), "triton": ("eager", "torch")}[folders[0]]
    uses = (f"zigzag.backends.{name}" for name in (folders[0], *own))
    return ("zigzag.reference", *uses, *LIBRARIES[folders[0]])


def python_files(*folders: str) -> list[Path]:
    """All Python files below the folders, links not followed."""
    walks = {folder: list(os.walk(ROOT / folder)) for folder in folders}
    files = {
        folder: [Path(where, name) for where, _, names in walk for name in names if name.endswith(".py")]
        for folder, walk in walks.items()
    }
    assert all(files.values()), files  # an empty folder would pass every check
    return sorted(path for found in files.values() for path in found)


def inner_files() -> list[Path]:
    return python_files("reference", "backends")


@pytest.mark.parametrize("path", inner_files(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_arrows(path: Path) -> None:
    assert foreign_imports(path.read_text(encoding="utf-8"), allowed_imports(path)) == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import torch", ["torch"]),
        ("def f():\n    import torch.nn", ["torch.nn"]),
        ("from zigzag import ops", ["zigzag.ops"]),
        ("import zigzag", ["zigzag"]),
        ("from zigzag.plans.layers import LayerPlan", ["zigzag.plans.layers"]),
        ("from ..backends import lookup", ["..backends"]),
        ("import numpy_extra", ["numpy_extra"]),
    ],
)
def test_arrow_check_can_fail(source: str, found: list[str]) -> None:
    assert foreign_imports(source, ("numpy", "zigzag.reference")) == found


def test_allowed_imports_depend_on_the_folder() -> None:
    assert "torch" not in allowed_imports(ROOT / "reference/torch/helper.py")
    assert "zigzag.backends" not in allowed_imports(ROOT / "reference/attention.py")
    assert "torch" not in allowed_imports(ROOT / "backends/registry.py")
    assert "torch" in allowed_imports(ROOT / "backends/torch/attention.py")
    assert "torch" not in allowed_imports(ROOT / "backends/cupy/raw/launch.py")
    assert "zigzag.backends.triton" not in allowed_imports(ROOT / "backends/cupy/attention.py")
    assert "zigzag.backends.torch" not in allowed_imports(ROOT / "backends/eager/attention.py")


def test_files_are_found_in_folders() -> None:
    found = {path.relative_to(ROOT).as_posix() for path in python_files("reference", "backends", "zigzag")}
    assert {"reference/checks/shapes.py", "backends/cupy/raw/launch.py", "zigzag/generation/drafting/mtp.py"} <= found
    assert not [name for name in found if name.startswith(("zigzag/reference/", "zigzag/backends/"))]


def module_of(path: Path) -> str:
    """The name that a file of the project is imported by."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    names = parts if parts[0] == "zigzag" else ("zigzag", *parts)
    return ".".join(names[:-1] if names[-1] == "__init__" else names)


def modules() -> dict[str, str]:
    """Every module of the project and its source."""
    return {module_of(path): path.read_text(encoding="utf-8") for path in python_files(*FOLDERS)}


def import_graph(sources: Mapping[str, str]) -> dict[str, set[str]]:
    """Which modules each one imports, inside functions, for type checkers and by `import_module` too.

    Names count as their module. A relative import is an error: what it names is not seen here.
    """

    def target(name: str) -> str:
        while name not in sources:
            name = name.rpartition(".")[0]
        return name

    graph: dict[str, set[str]] = {name: set() for name in sources}
    for name, source in sources.items():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import):
                found = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{name}: a relative import in line {node.lineno}"
                found = [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
                found = [each.value for each in node.args if isinstance(each, ast.Constant)]
            else:
                continue
            graph[name] |= {target(each) for each in found if each.split(".")[0] == "zigzag"} - {name}
    return graph


def circles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Groups of modules that import one another, directly or through others."""
    try:
        TopologicalSorter({name: sorted(uses) for name, uses in graph.items()}).prepare()
    except CycleError as error:
        return [error.args[1]]
    return []


def room_of(module: str) -> str:
    """The room of a module; of the package's own file, and of what stands beside the rooms, its name."""
    return module.split(".")[1] if "." in module else module


def wrong_arrows(graph: Mapping[str, set[str]]) -> list[str]:
    """Imports from a room to one that is not below it. The package's front and `__main__` hand names on."""
    arrows = {
        (one, other)
        for one, uses in graph.items()
        for other in uses
        if room_of(one) != room_of(other) and room_of(one) not in ("zigzag", "__main__")
    }
    return sorted(f"{one} -> {other}" for one, other in arrows if not may_use(room_of(one), room_of(other)))


def may_use(room: str, other: str) -> bool:
    if room in NOT_BELOW and other in FLOOR and FLOOR[other] > FLOOR["ops"]:
        return other in NOT_BELOW[room]
    return FLOOR.get(other, len(FLOORS)) < FLOOR[room]


def test_no_import_circle() -> None:
    assert circles(import_graph(modules())) == []


def test_rooms_import_what_is_below_them() -> None:
    graph = import_graph(modules())
    assert {room_of(name) for name in graph} - {"zigzag", "__main__"} == set(FLOOR)
    assert wrong_arrows(graph) == []


def test_graph_checks_can_fail() -> None:
    def graph(**sources: str) -> dict[str, set[str]]:
        named = {f"zigzag.{name.replace('_', '.')}": source for name, source in sources.items()}
        return import_graph({"zigzag": "", **named})

    lazy = graph(plans_layers="def f():\n    from zigzag.running.attach import attach", running_attach="")
    assert wrong_arrows(lazy) == ["zigzag.plans.layers -> zigzag.running.attach"]
    assert circles(lazy) == []
    by_name = graph(plans_layers="import_module('zigzag.running.attach')", running_attach="")
    assert wrong_arrows(by_name) == wrong_arrows(lazy)
    with pytest.raises(AssertionError, match="a relative import in line 1"):
        graph(plans_layers="from ..running.attach import attach", running_attach="")
    both = graph(plans_a="import zigzag.plans.b", plans_b="from zigzag.plans import a")
    assert [set(circle) for circle in circles(both)] == [{"zigzag.plans.a", "zigzag.plans.b"}]
    assert wrong_arrows(graph(sizes_page="import zigzag.caches.full", caches_full="")) != []
    assert wrong_arrows(graph(chat_x="from zigzag import generate")) == ["zigzag.chat.x -> zigzag"]
    assert wrong_arrows(graph(chat_x="from zigzag.serving.groups import y", serving_groups="")) != []


@pytest.mark.parametrize("path", python_files("zigzag"), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_only_the_command_line_prints_with_typer_and_rich(path: Path) -> None:
    if path.relative_to(ROOT).parts[1] != "cli":
        assert libraries(path.read_text(encoding="utf-8")) & set(ONLY_CLI) == set()


def libraries(source: str) -> set[str]:
    return {name.partition(".")[0] for name in foreign_imports(source, ())}


def test_library_check_can_fail() -> None:
    assert libraries("def f():\n    from rich.table import Table") == {"rich"}


def broken_link(link: Path, target: str) -> str:
    """Why `link` is not a symbolic link with exactly this target; empty if it is."""
    if not link.is_symlink():
        return f"{link.name} is no symbolic link; on Windows set core.symlinks before cloning"
    if os.readlink(link) != target:
        return f"{link.name} points to {os.readlink(link)}, not to {target}"
    return "" if link.is_dir() else f"{link.name} points nowhere"


@pytest.mark.parametrize(
    ("name", "target"),
    [("reference", "../reference"), ("backends", "../backends"), ("conformance", "../tests/parity")],
)
def test_package_link(name: str, target: str) -> None:
    assert broken_link(ROOT / "zigzag" / name, target) == ""


def test_link_check_can_fail(tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    assert "no symbolic link" in broken_link(tmp_path / "plain", "../plain")
    (tmp_path / "absolute").symlink_to(tmp_path / "plain")
    assert "not to ../plain" in broken_link(tmp_path / "absolute", "../plain")
    (tmp_path / "dangling").symlink_to("../nothing")
    assert "nowhere" in broken_link(tmp_path / "dangling", "../nothing")


def heavy_modules(statement: str, folder: Path) -> list[str]:
    """Which of HEAVY a fresh interpreter holds after `statement`.

    Empty modules of these names stand in front: the check is fast, needs none of the libraries, and also
    notices an import that is guarded by try.
    """
    for name in HEAVY:
        (folder / f"{name}.py").touch()
    code = f"{statement}\nimport sys\nprint(*[name for name in {HEAVY!r} if name in sys.modules])"
    path = os.pathsep.join([str(folder), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": path},
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize("module", ["zigzag", "zigzag.ops", "zigzag.backends", "zigzag.reference"])
def test_import_is_light(module: str, tmp_path: Path) -> None:
    assert heavy_modules(f"import {module}", tmp_path) == []


def test_light_import_check_can_fail(tmp_path: Path) -> None:
    assert heavy_modules("import rich, zigzag", tmp_path) == ["rich"]
    assert heavy_modules("try:\n    import torch\nexcept ImportError:\n    pass", tmp_path) == ["torch"]


def ours(path: Path) -> bool:
    return path.is_relative_to(ROOT) and path.relative_to(ROOT).parts[0] in FOLDERS


def second_copies(modules: Mapping[str, ModuleType]) -> list[list[str]]:
    """Groups of module names that were loaded from one file of this project."""
    names: dict[Path, list[str]] = {}
    for name, module in modules.items():
        if file := getattr(module, "__file__", None):
            names.setdefault(Path(file).resolve(), []).append(name)
    return [group for path, group in names.items() if len(group) > 1 and ours(path)]


def test_no_second_copy() -> None:
    import_module("zigzag.reference.visibility")
    assert "zigzag.reference.visibility" in sys.modules
    assert second_copies(dict(sys.modules)) == []
    assert [name for name in sys.modules if name.partition(".")[0] in ("reference", "backends")] == []


def test_second_copy_check_can_fail() -> None:
    first, second = ModuleType("zigzag.reference.attention"), ModuleType("reference.attention")
    first.__file__ = str(ROOT / "zigzag" / "reference" / "attention.py")
    second.__file__ = str(ROOT / "reference" / "attention.py")
    assert second_copies({m.__name__: m for m in (first, second)}) == [[first.__name__, second.__name__]]


def windows_taken_apart(source: str) -> list[str]:
    """Where a plan's window is read past `plan.window(layer)`: windows may differ by layer."""
    return re.findall(r"plan\.(?:sink|recent|align)\b", source)


@pytest.mark.parametrize("room", ["caches", "running", "generation", "sizes"])
def test_a_layers_window_comes_from_its_plan(room: str) -> None:
    for path in python_files(f"zigzag/{room}"):
        assert windows_taken_apart(path.read_text(encoding="utf-8")) == [], path


def test_window_check_can_fail() -> None:
    assert windows_taken_apart("Window(self._plan.sink, plan.recent)") == ["plan.sink", "plan.recent"]


def test_no_assertion_guards_state() -> None:
    """`python -O` would take it away."""
    for path in python_files("reference", "backends", "zigzag"):
        assert assertions(path.read_text(encoding="utf-8")) == [], path


def assertions(source: str) -> list[int]:
    return [node.lineno for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Assert)]


def test_assertion_check_can_fail() -> None:
    assert assertions("def f(x):\n    assert x") == [2]


def long_files(files: list[Path], limit: int = MAX_LINES) -> list[str]:
    sizes = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    return [f"{path.name}: {size} lines" for path, size in sizes.items() if size > limit]


def test_no_file_is_long() -> None:
    assert long_files(python_files(*FOLDERS)) == []


def test_length_check_can_fail(tmp_path: Path) -> None:
    (tmp_path / "long.py").write_text("\n" * (MAX_LINES + 1))
    assert long_files([tmp_path / "long.py"]) == [f"long.py: {MAX_LINES + 1} lines"]
