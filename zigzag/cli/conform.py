"""`zigzag conform`: the property tests of the ops on one backend, in a pytest of its own."""

import io
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from difflib import get_close_matches
from enum import StrEnum
from importlib import import_module
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from zigzag.backends import backend_names, get_backend, list_backends
from zigzag.cli import cells as printing
from zigzag.cli.options import Device, check_written
from zigzag.cli.progress import activity
from zigzag.files.near import meant
from zigzag.reference import OPS
from zigzag.reference.errors import ZigzagError
from zigzag.version import __version__

SUITE = "zigzag.conformance"  # tests, which need pytest: imported when it is there
NEEDED = ("pytest", "hypothesis")
RAN = (0, 1)  # pytest's exit codes
NOTHING_CHOSEN = 5
OPTIONS = f"--import-mode=importlib --capture=sys -p no:cacheprovider -p {SUITE}.plugin -m on_backend"
VERBOSE = "-q -rsfE --tb=short"
NO_SUBFOLDERS = "[pytest]\nnorecursedirs = *\n"  # in a clone, `internals` lies below the suite


class Profile(StrEnum):
    dev = "dev"
    ci = "ci"
    gpu = "gpu"


JsonFile = Annotated[
    Path | None,
    typer.Option("--json", callback=lambda path: check_written("--json", path), help="Also write the cells there."),
]


def conform(
    name: Annotated[str, typer.Argument(help="The backend, as `zigzag info` lists it or as the module registers it.")],
    load: Annotated[
        str | None, typer.Option(help="Module that calls zigzag.register_backend; may lie in this folder.")
    ] = None,
    only: Annotated[list[str] | None, typer.Option(help="An op, or several: --only merge,sample or twice.")] = None,
    device: Device = "cpu",
    profile: Annotated[
        Profile, typer.Option(help="How many examples: ci draws 4 times as many, gpu twice.")
    ] = Profile.dev,
    max_examples: Annotated[int | None, typer.Option(min=1, help="Of each test, instead of its own number.")] = None,
    seed: Annotated[int | None, typer.Option(help="Other examples; without it they are the same each time.")] = None,
    gaps: Annotated[Path | None, typer.Option(help="TOML of what is known to fail, with reasons.")] = None,
    json: JsonFile = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="Also pytest's own output.")] = False,
) -> None:
    """Judge a backend, also one of your own: a table op by property. Exit code 0: nothing failed but known gaps."""
    if missing := [needed for needed in NEEDED if find_spec(needed) is None]:
        raise ZigzagError(f"conform needs {' and '.join(missing)}: pip install 'zigzag-attention[conform]'")
    if load and load.endswith(".py"):
        raise ZigzagError(f"conform: --load takes the name of a module, {load.removesuffix('.py')}, not a file's")
    wanted = ops_of(only or [])
    known = import_module(f"{SUITE}.gaps").read_gaps(gaps) if gaps else {}
    check_backend(name, load, device)
    given: dict[str, str | int | None] = {
        "--backend": name,
        "--device": device,
        "--load": load,
        "--profile": profile.value,
    }
    given |= {"--max-examples": max_examples, "--seed": seed}
    options = [f"{option}={value}" for option, value in given.items() if value is not None]
    options += [f"--op={op}" for op in wanted if only]
    begun = monotonic()
    report = judged(name, options, verbose)
    supported = next((info.ops for info in list_backends() if info.name == name), ())
    found = report.cells(supported, wanted, known)
    if not report.broken and all(cell.result == "not supported" for cell in found):
        raise ZigzagError(f"conform: no test ran on backend {name!r}; it has {', '.join(supported) or 'no op'}")
    about = {"backend": name, "device": device, "profile": profile.value, "max_examples": max_examples, "seed": seed}
    tell(found, report.broken, f"{name}: {printing.summary(found)}; {monotonic() - begun:.0f} s")
    if json is not None:
        printing.save(json, found, {"format": "zigzag-conform", "version": 1, "zigzag": __version__} | about)
    bad = import_module(f"{SUITE}.report").BAD
    raise typer.Exit(int(bool(report.broken) or any(cell.result in bad for cell in found)))


def check_backend(name: str, load: str | None, device: str) -> None:
    """ZigzagError for a name that nothing has, found before a backend is imported, and for one that cannot run."""
    sys.dont_write_bytecode = True  # into the user's folder, and pytest would into the installed package
    if device == "cpu":
        os.environ.setdefault("TRITON_INTERPRET", "1")  # before the module may import Triton
    if load:
        sys.path.insert(0, os.getcwd())
        try:
            import_module(load)
        except ImportError as error:
            raise ZigzagError(f"conform: --load {load}: {error}") from error
    if name not in (known := backend_names()):
        near = meant(name, known, lambda path: False) or f"; known: {', '.join(known)}"
        raise ZigzagError(f"conform: there is no backend {name!r}{near}")
    get_backend(name)  # why it cannot run, if it cannot


def ops_of(only: Sequence[str]) -> tuple[str, ...]:
    """All ops where none is named; ZigzagError for a name that is none."""
    names = [name for part in only for name in part.replace(",", " ").split()]
    for name in names:
        if name not in OPS:
            near = get_close_matches(name, OPS, 3, 0.6)
            told = f"did you mean {' or '.join(near)}?" if near else f"the ops are {', '.join(OPS)}"
            raise ZigzagError(f"conform: --only takes names of ops, there is no {name!r}; {told}")
    return tuple(names) or OPS


def tell(found: Sequence[Any], broken: Sequence[str], summary: str) -> None:
    console, judging = Console(), import_module(f"{SUITE}.judging")
    printing.show(found, (judging.CALLING, judging.COMPUTING), console)
    for text in broken:
        console.print(text, soft_wrap=True, markup=False, highlight=False)
    console.print(summary, soft_wrap=True, markup=False, highlight=False)


def judged(name: str, options: Sequence[str], verbose: bool) -> Any:
    """The suite's report; whatever the user's own pytest settings say, they play no part."""
    suite, output = str(files(SUITE)), io.StringIO()
    with TemporaryDirectory() as scratch, advancing(Console(stderr=True), name, shown=not verbose) as advance:
        settings = Path(scratch, "pytest.ini")
        settings.write_text(NO_SUBFOLDERS, encoding="utf-8")
        for variable in ("PYTEST_ADDOPTS", "PYTEST_PLUGINS"):
            os.environ.pop(variable, None)
        os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
        os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = scratch

        import pytest

        report = import_module(f"{SUITE}.report").Report(advance)
        places = ["-c", str(settings), "--rootdir", suite, "--confcutdir", suite]
        arguments = [suite, *places, *OPTIONS.split(), *(VERBOSE.split() if verbose else ()), *options]
        with nullcontext() if verbose else redirect_stdout(output):
            code = int(pytest.main(arguments, plugins=[report]))
    if code == NOTHING_CHOSEN:
        raise ZigzagError(f"conform: no test ran on backend {name!r}")
    if code not in RAN and not report.broken:
        print(output.getvalue(), end="")
        raise typer.Exit(code)  # pytest has said why
    return report


@contextmanager
def advancing(console: Console, name: str, *, shown: bool) -> Iterator[Callable[[int, int], object]]:
    """A bar, or what a log's line every 30 seconds tells; yields what is called after each test."""
    if not (shown and console.is_terminal):
        with activity(name) as begun:
            yield begun.reached
    else:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        # Drawn after each test and not by a thread: pytest holds the terminal while a test runs.
        with Progress(*columns, console=console, auto_refresh=False, transient=True) as bars:
            task = bars.add_task(name)
            yield lambda done, total: bars.update(task, completed=done, total=total, refresh=True)
