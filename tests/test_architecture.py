"""The arrows reference <- backends <- zigzag, the two links, and what `import zigzag` may load."""

import ast
import os
import subprocess
import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = sorted(
    f"zigzag/{p.parent.name}" for p in (ROOT / "zigzag").glob("*/__init__.py") if not p.parent.is_symlink()
)
FOLDERS = ("reference", "backends", "zigzag", *PACKAGES)
MAX_LINES = 400  # a longer file is split by op
HEAVY = ("torch", "transformers", "typer", "rich", "matplotlib")

# What a backend file may import besides zigzag.reference and zigzag.backends, by the first word of its name.
LIBRARIES = {
    "torch": ("torch", "numpy"),
    "triton": ("triton", "torch", "numpy"),
    "cupy": ("cupy", "numpy"),
}


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
    if path.parent.name == "reference":
        return ("numpy", "zigzag.reference")
    library = LIBRARIES.get(path.stem.lstrip("_").partition("_")[0], ())
    return ("zigzag.reference", "zigzag.backends", *library)


def python_files(*folders: str) -> list[Path]:
    files = [path for folder in folders for path in sorted((ROOT / folder).glob("*.py"))]
    assert {path.parent for path in files} == {
        ROOT / folder for folder in folders
    }  # an empty folder would pass every check
    return files


def inner_files() -> list[Path]:
    return python_files("reference", "backends")


@pytest.mark.parametrize("path", inner_files(), ids=lambda path: f"{path.parent.name}/{path.name}")
def test_arrows(path: Path) -> None:
    assert foreign_imports(path.read_text(encoding="utf-8"), allowed_imports(path)) == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import torch", ["torch"]),
        ("def f():\n    import torch.nn", ["torch.nn"]),
        ("from zigzag import ops", ["zigzag.ops"]),
        ("import zigzag", ["zigzag"]),
        ("from zigzag.plans import LayerPlan", ["zigzag.plans"]),
        ("from ..backends import lookup", ["..backends"]),
        ("import numpy_extra", ["numpy_extra"]),
    ],
)
def test_arrow_check_can_fail(source: str, found: list[str]) -> None:
    assert foreign_imports(source, ("numpy", "zigzag.reference")) == found


def test_allowed_imports_depend_on_the_file() -> None:
    assert "torch" not in allowed_imports(ROOT / "reference/torch_helper.py")
    assert "zigzag.backends" not in allowed_imports(ROOT / "reference/masked_attention.py")
    assert "torch" not in allowed_imports(ROOT / "backends/__init__.py")
    assert "torch" in allowed_imports(ROOT / "backends/torch_eager.py")


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


def second_copies(modules: Mapping[str, ModuleType]) -> list[list[str]]:
    """Groups of module names that were loaded from one file of this project."""
    names: dict[Path, list[str]] = {}
    for name, module in modules.items():
        if file := getattr(module, "__file__", None):
            names.setdefault(Path(file).resolve(), []).append(name)
    ours = [ROOT / folder for folder in FOLDERS]
    return [group for path, group in names.items() if len(group) > 1 and path.parent in ours]


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


def long_files(files: list[Path], limit: int = MAX_LINES) -> list[str]:
    sizes = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    return [f"{path.name}: {size} lines" for path, size in sizes.items() if size > limit]


def test_no_file_is_long() -> None:
    assert long_files(python_files(*FOLDERS)) == []


def test_packages_inside_are_seen() -> None:
    assert {"zigzag/ops", "zigzag/drafting"} <= set(FOLDERS)
    assert not {"zigzag/reference", "zigzag/backends"} & set(FOLDERS)


def test_length_check_can_fail(tmp_path: Path) -> None:
    (tmp_path / "long.py").write_text("\n" * (MAX_LINES + 1))
    assert long_files([tmp_path / "long.py"]) == [f"long.py: {MAX_LINES + 1} lines"]
