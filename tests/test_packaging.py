"""What is shipped: the packages list is complete, and the wheel made from the sdist holds and imports everything."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PACKAGE_DIR: dict[str, str] = PROJECT["tool"]["setuptools"]["package-dir"]
PACKAGES: list[str] = PROJECT["tool"]["setuptools"]["packages"]
PACKAGE_DATA: dict[str, list[str]] = PROJECT["tool"]["setuptools"]["package-data"]


def folder_of(package: str) -> str:
    """The folder of a package: its own entry, or its parent's and its name."""
    if package in PACKAGE_DIR:
        return PACKAGE_DIR[package]
    parent, _, name = package.rpartition(".")
    return f"{folder_of(parent)}/{name}"


def folders_with_python(root: Path, top_folders: Iterable[str]) -> set[str]:
    """Folders below `root` that hold Python files, links not followed."""
    walk = [(Path(folder), names) for top in top_folders for folder, _, names in os.walk(root / top)]
    return {path.relative_to(root).as_posix() for path, names in walk if any(n.endswith(".py") for n in names)}


def differences(expected: Iterable[str], found: Iterable[str]) -> list[str]:
    expected, found = set(expected), set(found)
    lacking = [f"lacks {name}" for name in sorted(expected - found)]
    return lacking + [f"should not have {name}" for name in sorted(found - expected)]


def shipped_files() -> set[str]:
    """Every file of the package folders, Markdown only where it is asked for, by its name in the wheel; the plugin."""
    files = {
        f"{package.replace('.', '/')}/{path.name}"
        for package in PACKAGES
        for path in (ROOT / folder_of(package)).iterdir()
        if path.is_file() and (path.suffix != ".md" or "*.md" in PACKAGE_DATA.get(package, ()))
    }
    assert len(files) > len(PACKAGES)
    return files | deeper_files() | {"zigzag_pytest.py"}


def deeper_files() -> set[str]:
    """What lies in folders below a package that hold no code."""
    found = {
        f"{package.replace('.', '/')}/{path.relative_to(ROOT / folder_of(package)).as_posix()}"
        for package, patterns in PACKAGE_DATA.items()
        for pattern in patterns
        if "/" in pattern
        for path in (ROOT / folder_of(package)).glob(pattern)
    }
    assert len(found) >= 21  # three files of each head
    return found


def test_packages_list_is_complete() -> None:
    folders = folders_with_python(ROOT, ["reference", "backends", "zigzag"]) | {"tests/parity"}
    assert differences(map(folder_of, PACKAGES), folders) == []
    assert [folder for folder in sorted(folders) if not (ROOT / folder / "__init__.py").is_file()] == []


def test_packages_check_can_fail(tmp_path: Path) -> None:
    (tmp_path / "reference/forgotten").mkdir(parents=True)
    (tmp_path / "reference/__init__.py").touch()
    (tmp_path / "reference/forgotten/__init__.py").touch()
    folders = folders_with_python(tmp_path, ["reference"])
    assert differences(["reference", "backends"], folders) == ["lacks backends", "should not have reference/forgotten"]


def test_version_and_script() -> None:
    import zigzag

    assert zigzag.__version__ == PROJECT["project"]["version"]
    module, _, _ = PROJECT["project"]["scripts"]["zigzag"].partition(":")
    assert f"{module.replace('.', '/')}.py" in shipped_files()


def new_setuptools() -> bool:
    try:
        return int(version("setuptools").partition(".")[0]) >= 77
    except PackageNotFoundError:
        return False


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel built from the sdist built from a copy, so that nothing is written into the tree."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in ("pyproject.toml", "README.md", "LICENSE", "zigzag_pytest.py"):
        shutil.copy(ROOT / name, source)
    for folder in ("reference", "backends", "zigzag", "tests/parity"):
        shutil.copytree(ROOT / folder, source / folder, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    isolation = ["--no-isolation"] if new_setuptools() else []  # isolation needs a network
    # The folder to build in must not be the tree's root, where an old build/ would hide the module of that name.
    command = [sys.executable, "-m", "build", *isolation, "--outdir", str(out), str(source)]
    done = subprocess.run(command, cwd=out, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = out.glob("*.whl")
    return built


def test_wheel_holds_every_file(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert differences(shipped_files(), (name for name in names if ".dist-info/" not in name)) == []
    assert any(name.endswith("LICENSE") for name in names)


@pytest.fixture(scope="module")
def unpacked(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unpacked").resolve()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def run_with(package: Path, folder: Path, *arguments: str) -> str:
    env = os.environ | {"PYTHONPATH": str(package)}
    done = subprocess.run([sys.executable, *arguments], cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_wheel_imports(unpacked: Path, tmp_path: Path) -> None:
    code = (
        "import zigzag.ops, zigzag.reference.checks as c, zigzag.conformance as k, zigzag_pytest as p\n"
        "for one in zigzag, c, k, p:\n"
        "    print(one.__file__)"
    )
    found = run_with(unpacked, tmp_path, "-c", code).splitlines()
    assert [Path(line).resolve().is_relative_to(unpacked) for line in found] == [True] * 4


def test_wheel_runs_its_suite(unpacked: Path, tmp_path: Path) -> None:
    """From another folder, without a trace."""
    pytest.importorskip("typer", reason="typer is not installed")
    pytest.importorskip("rich", reason="rich is not installed")
    suite = unpacked / "zigzag/conformance"
    before = sorted(suite.rglob("*"))
    command = ["-m", "zigzag", "conform", "numpy", "--only", "visible", "--max-examples", "3"]
    printed = run_with(unpacked, tmp_path, *command)
    assert "visible" in printed and " pass;" in printed, printed
    assert sorted(suite.rglob("*")) == before and not list(tmp_path.iterdir())


def skipped_without(text: str) -> set[str]:
    """Packages without which tests of this source are skipped."""
    return {name.partition(".")[0] for name in re.findall(r"importorskip\(\s*[\"']([\w.]+)", text)}


def test_no_test_is_skipped_for_what_make_test_does_not_install() -> None:
    """`make test` installs the extras `all` and `test`: what they lack would be skipped everywhere, without a word."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    installed = {
        re.match(r"[\w-]+", line)[0] for name in ("all", "test", "models", "cli", "plot") for line in extras[name]
    }
    installed |= {"torch", "zigzag"}
    texts = [path.read_text() for path in (ROOT / "tests").rglob("*.py")]
    assert set().union(*map(skipped_without, texts)) - installed <= {"cupy", "cosmic_ray", "lm_eval", "playwright"}
    assert skipped_without("x = pytest.importor" + 'skip("nothing.of.it")') == {"nothing"}
