"""What is shipped: the packages list is complete, and the wheel made from the sdist holds and imports everything."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterable
from importlib import metadata, reload
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from release.shipped import licence_faults, members, size_faults

from zigzag import version as the_version

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


def test_script_is_shipped() -> None:
    module, _, _ = PROJECT["project"]["scripts"]["zigzag"].partition(":")
    assert f"{module.replace('.', '/')}.py" in shipped_files()


def test_version_is_what_was_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise PackageNotFoundError(name)

    with monkeypatch.context() as patch:
        patch.setattr(metadata, "version", {"zigzag-attention": "7.8.9"}.__getitem__)
        assert reload(the_version).__version__ == "7.8.9"
        patch.setattr(metadata, "version", absent)
        assert reload(the_version).__version__ == "0+unknown"
    reload(the_version)


def scm_version(folder: Path) -> str:
    done = subprocess.run([sys.executable, "-m", "setuptools_scm"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_versions_come_from_tags(tmp_path: Path) -> None:
    """Of a copy without history, a history without tags, a tagged commit, one behind it, and one with changes."""
    pytest.importorskip("setuptools_scm", reason="setuptools-scm is not installed")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)

    def git(*words: str) -> None:
        who = ("-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false")
        subprocess.run(["git", "-C", str(tmp_path), *who, *words], check=True, capture_output=True)

    prepared = PROJECT["tool"]["setuptools_scm"]["fallback_version"]
    assert scm_version(tmp_path) == prepared
    git("init")
    git("add", "pyproject.toml")
    git("commit", "-m", "one")
    assert scm_version(tmp_path) == prepared.replace("dev0", "dev1")
    git("tag", "v7.8.0")
    assert scm_version(tmp_path) == "7.8.0"
    git("commit", "-m", "two", "--allow-empty")
    assert scm_version(tmp_path) == "7.8.1.dev1"
    git("tag", "v7.9.0")
    (tmp_path / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text() + "# changed\n")
    assert scm_version(tmp_path) == "7.9.1.dev0"


def test_the_version_without_tags_is_what_the_changelog_prepares() -> None:
    """Or, between two releases, has a date."""
    heading = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert heading is not None and PROJECT["tool"]["setuptools_scm"]["fallback_version"] == f"{heading[1]}.dev0"


def can_build_here(requires: Iterable[str]) -> bool:
    """Whether what the build needs is installed."""
    try:
        return all(one.specifier.contains(version(one.name), True) for one in map(Requirement, requires))
    except PackageNotFoundError:
        return False


def test_what_a_build_needs_is_looked_for() -> None:
    assert can_build_here(["pytest>=8", "packaging"])
    assert not can_build_here(["pytest>=8", "no-such-package"]) and not can_build_here(["pytest>=999"])


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel built from the sdist built from a copy, so that nothing is written into the tree."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in ("pyproject.toml", "README.md", "LICENSE", "zigzag_pytest.py"):
        shutil.copy(ROOT / name, source)
    for folder in ("reference", "backends", "zigzag", "tests/parity"):
        shutil.copytree(ROOT / folder, source / folder, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    isolation = (
        ["--no-isolation"] if can_build_here(PROJECT["build-system"]["requires"]) else []
    )  # isolation needs a network
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


def test_wheel_is_small_and_licensed(wheel: Path) -> None:
    """What ships beside code, weights above all, has a note of its licence."""
    assert size_faults(wheel) == [] and size_faults(wheel, limit=1_000_000) != []
    files = members(wheel)
    assert licence_faults(files, PROJECT["project"]["license"]) == []
    notes = [name for name in files if name.endswith("README.md")]
    without = {name: content for name, content in files.items() if name not in notes}
    assert len(notes) == 8 and len(licence_faults(without, PROJECT["project"]["license"])) >= 20


def test_wheel_knows_its_version(wheel: Path, unpacked: Path, tmp_path: Path) -> None:
    """Built without history, and so without tags."""
    found = run_with(unpacked, tmp_path, "-c", "import zigzag; print(zigzag.__version__)").strip()
    assert wheel.name.split("-")[1] == found == PROJECT["tool"]["setuptools_scm"]["fallback_version"]


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
        re.match(r"[\w-]+", line)[0].replace("-", "_")
        for name in ("all", "test", "models", "cli", "plot")
        for line in extras[name]
    }
    installed |= {"torch", "zigzag"}
    texts = [path.read_text() for path in (ROOT / "tests").rglob("*.py")]
    assert set().union(*map(skipped_without, texts)) - installed <= {"cupy", "cosmic_ray", "lm_eval", "playwright"}
    assert skipped_without("x = pytest.importor" + 'skip("nothing.of.it")') == {"nothing"}
