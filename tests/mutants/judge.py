"""Tests run in a copy of the tree, each time in a process of its own, forked from one that has the libraries."""

import contextlib
import os
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from compileall import compile_dir
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from mutants.reach import FOLDERS, Chosen, Reached

LIBRARIES = [
    *("numpy", "torch", "hypothesis", "pytest", "_pytest.doctest", "tokenizers", "transformers", "triton", "scipy"),
    *("transformers.models.llama.modeling_llama", "transformers.models.glm4_moe.modeling_glm4_moe"),
    *("transformers.generation.utils", "coverage", "accelerate", "typer", "rich", "matplotlib"),
    *("hypothesis.strategies", "_hypothesis_pytestplugin", "xdist.plugin", "pytest_benchmark.plugin"),
]
LEFT_OUT = (".git", ".venv", "out", "build", "dist", "__pycache__", "*.pyc", ".*_cache", ".hypothesis", ".benchmarks")
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "TRITON_INTERPRET": "1",
    "CUDA_VISIBLE_DEVICES": "",  # a card would give other tests
    "PYTHONDONTWRITEBYTECODE": "1",  # of a mistake
}
MEMORY = 12 << 30  # bytes of a test run


def prepare() -> None:
    """Before anything is run."""
    os.environ.update(ENVIRONMENT)
    get_context("forkserver").set_forkserver_preload(LIBRARIES)


@contextmanager
def copy_of(root: Path) -> Iterator[Path]:
    """A copy of the tree, links kept."""
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        tree = Path(folder).resolve() / "tree"
        shutil.copytree(root, tree, symlinks=True, ignore=shutil.ignore_patterns(*LEFT_OUT))
        for name in FOLDERS:
            compile_dir(tree / name, quiet=2)  # else each process would do it
        yield tree


@contextmanager
def changed(tree: Path, file: str, text: str) -> Iterator[None]:
    """Within the block the file reads so."""
    path = tree / file
    before, compiled = path.read_bytes(), path.stat()
    path.write_text(text, encoding="utf-8")
    os.utime(path, (compiled.st_atime, compiled.st_mtime + 10))  # so that what was compiled is not taken for it
    try:
        yield
    finally:
        path.write_bytes(before)
        os.utime(path, (compiled.st_atime, compiled.st_mtime))


def lines_of(tree: Path, file: str, limit: float) -> dict[str, Any] | None:
    """What each test of a file reaches, see `Reached.found`; None if it took longer than `limit` seconds or died."""
    return _in_process(tree, "reached", [], [file], limit)


def outcome_of(tree: Path, names: Sequence[str], limit: float, *, first: bool = True) -> dict[str, Any] | None:
    """Of these tests, in this order, up to the first failure; see `Chosen.found`. None as above."""
    files = list(dict.fromkeys(name.partition("::")[0] for name in names))
    found = _in_process(tree, "chosen", list(names), [*(["-x"] if first else []), *files], limit)
    if found is not None and found["foreign"]:
        raise RuntimeError(f"the tests imported {found['foreign']} instead of the copy in {tree}")
    return found


def _in_process(tree: Path, kind: str, names: list[str], arguments: list[str], limit: float) -> Any:
    context = get_context("forkserver")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(sender, str(tree), kind, names, arguments))
    process.start()
    sender.close()
    try:
        found = receiver.recv() if receiver.poll(limit) else None
    except EOFError:  # it died
        found = None
    finally:
        if process.pid:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)  # and what its tests have started
        process.kill()
        process.join()
        receiver.close()
    if found is not None and "error" in found:
        raise RuntimeError(f"tests could not be run in {tree}:\n{found['error']}")
    return found


def _child(sender: Connection, folder: str, kind: str, names: list[str], arguments: list[str]) -> None:
    os.setsid()
    tree = Path(folder)
    _limit_memory()
    os.chdir(tree)
    ours = {Path(path).resolve() for path in (Path(__file__).parents[2], Path(__file__).parents[1])}
    sys.path[:] = [folder, *(path for path in sys.path if Path(path or ".").resolve() not in ours)]
    os.environ["PYTHONPATH"] = os.pathsep.join((folder, str(tree / "tests")))  # of what tests start
    sys.dont_write_bytecode = True
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    makers: Mapping[str, Callable[[], Any]] = {"reached": lambda: Reached(tree), "chosen": lambda: Chosen(tree, names)}
    try:
        plugin = makers[kind]()
        early = "ignore::pytest.PytestAssertRewriteWarning"  # hypothesis is there already
        pytest.main(["-q", "-p", "no:cacheprovider", "-W", early, "--rootdir", folder, *arguments], plugins=[plugin])
        sender.send(plugin.found())
    except BaseException:
        sender.send({"error": traceback.format_exc()})
    sender.close()
    os._exit(0)


def _limit_memory() -> None:
    import resource

    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
