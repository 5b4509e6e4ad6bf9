"""The two environments of the matrix: the lowest versions that pyproject.toml allows, and the newest there are."""

import json
import os
import re
import shutil
import subprocess
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
EXTRAS = ("all", "recover", "conform")  # what users install; `models` and `torch` come with `all`
FLOORED = ("torch", "models", "cli", "plot", "recover")  # whose versions have a lowest one
TOOLS = ("pytest-benchmark", "pytest-xdist", "packaging", "build", "setuptools-scm>=10.3")
NEWEST_PYTHON = "3.13"
TOLD = ("numpy", "torch", "transformers", "triton")  # libraries whose versions the record names

_VERSIONS = """
import json, platform, sys
from importlib import metadata
found = {"python": platform.python_version()}
for name in sys.argv[1:]:
    try:
        found[name] = metadata.version(name)
    except metadata.PackageNotFoundError:
        found[name] = ""
print(json.dumps(found))
"""


@dataclass(frozen=True)
class Environment:
    """python: as in "3.11". pins: versions that pip must take."""

    name: str
    python: str
    pins: Mapping[str, str]


def floors(pyproject: str) -> dict[str, str]:
    """The lowest version that is allowed, by package; Python's as "python"."""
    project = tomllib.loads(pyproject)["project"]
    lines = [f"python{project['requires-python']}", *project["dependencies"]]
    lines += [line for extra in FLOORED for line in project["optional-dependencies"][extra]]
    found = (re.match(r"([\w-]+)>=([\d.]+)", line) for line in lines)
    return {match[1]: match[2] for match in found if match}


def environments(pyproject: str) -> list[Environment]:
    lowest = floors(pyproject)
    return [Environment("lowest", lowest.pop("python"), lowest), Environment("newest", NEWEST_PYTHON, {})]


def interpreter(python: str) -> str | None:
    """A Python of this version that runs: the one that PYTHON311 or its like names, or else what is on the path."""
    variable = f"PYTHON{python.replace('.', '')}"
    command = os.environ.get(variable) or shutil.which(f"python{python}")
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    try:
        done = subprocess.run([command or "", "-c", code], capture_output=True, text=True)
    except OSError:
        return None
    return command if done.stdout.strip() == python else None


def make(environment: Environment, folder: Path) -> str:
    """Makes it where it is not as it should be; gives why that was not possible, else nothing. Pip's words: pip.log."""
    folder.mkdir(parents=True, exist_ok=True)
    python, pins, done = folder / "venv/bin/python", folder / "pins.txt", folder / "ready.txt"
    wanted = [f".[{','.join(EXTRAS)}]", *TOOLS]
    text = "".join(f"{name}=={version}\n" for name, version in environment.pins.items())
    ready = "\n".join([text, *wanted, (ROOT / "pyproject.toml").read_text(encoding="utf-8")])
    if python.exists() and done.exists() and done.read_text(encoding="utf-8") == ready:
        return ""
    pins.write_text(text, encoding="utf-8")
    commands = [[str(python), "-m", "pip", "install", "-q", "-c", str(pins), "-e", *wanted]]
    if not python.exists():
        base = interpreter(environment.python)
        if base is None:
            return f"no Python {environment.python}: name one by PYTHON{environment.python.replace('.', '')}"
        commands.insert(0, [base, "-m", "venv", str(folder / "venv")])
    with (folder / "pip.log").open("w", encoding="utf-8") as log:
        for command in commands:
            if subprocess.run(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT).returncode:
                return f"`{' '.join(command)}` failed: see {folder / 'pip.log'}"
    done.write_text(ready, encoding="utf-8")
    return ""


def versions(folder: Path) -> dict[str, str]:
    command = [str(folder / "venv/bin/python"), "-c", _VERSIONS, *TOLD]
    found: dict[str, str] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return found
