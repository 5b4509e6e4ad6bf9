"""`zigzag conform`: the property tests of the ops on one backend, in a pytest of its own."""

import os
import sys
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

from zigzag.cli.options import Device
from zigzag.reference.errors import ZigzagError

NEEDED = ("pytest", "hypothesis")
NOTHING_CHOSEN = 5  # pytest's exit code
OPTIONS = "--import-mode=importlib -p no:cacheprovider -p zigzag.conformance.plugin -m on_backend -q -rsfE --tb=line"
NO_SUBFOLDERS = "[pytest]\nnorecursedirs = *\n"  # in a clone, `internals` lies below the suite


def conform(
    name: Annotated[str, typer.Argument(help="The backend, as `zigzag info` lists it or as the module registers it.")],
    load: Annotated[
        str | None, typer.Option(help="Module that calls zigzag.register_backend; may lie in this folder.")
    ] = None,
    only: Annotated[str, typer.Option(help="Tests with this in their name, as an op; also 'merge or sample'.")] = "",
    device: Device = "cpu",
) -> None:
    """Run the property tests on a backend, also one of your own. Exit code 0: some ran, and all passed."""
    if missing := [needed for needed in NEEDED if find_spec(needed) is None]:
        raise ZigzagError(f"conform needs {' and '.join(missing)}: pip install 'zigzag-attention[conform]'")
    if load and load.endswith(".py"):
        raise ZigzagError(f"conform: --load takes the name of a module, {load.removesuffix('.py')}, not a file's")
    if load:
        sys.path.insert(0, os.getcwd())
    given = {"--backend": name, "--device": device, "--load": load, "-k": only}
    code, passed = _run([part for option, value in given.items() if value for part in (option, value)])
    if code == NOTHING_CHOSEN:
        raise ZigzagError(f"conform: no test has {only!r} in its name; without --only all run")
    if code == 0 and not passed:
        raise ZigzagError(f"conform: no test ran on backend {name!r}; the reasons are above")
    raise typer.Exit(code)


class Passed:
    """Counts the tests that ran and passed; pytest's exit code is 0 too where all were skipped."""

    count = 0

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.count += report.when == "call" and report.passed


def _run(options: list[str]) -> tuple[int, int]:
    """Exit code and number of passed tests, whatever the user's own pytest settings say."""
    sys.dont_write_bytecode = True  # pytest would write into the installed package
    suite, passed = str(files("zigzag.conformance")), Passed()
    with TemporaryDirectory() as scratch:
        settings = Path(scratch, "pytest.ini")
        settings.write_text(NO_SUBFOLDERS, encoding="utf-8")
        for variable in ("PYTEST_ADDOPTS", "PYTEST_PLUGINS"):
            os.environ.pop(variable, None)
        os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
        os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = scratch

        import pytest

        places = ["-c", str(settings), "--rootdir", suite, "--confcutdir", suite]
        code = pytest.main([suite, *places, *OPTIONS.split(), *options], plugins=[passed])
    return int(code), passed.count
