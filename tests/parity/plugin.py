"""The pytest plugin of the suite: which backend it runs on, where, how long, and what each test found.

`pytest --pyargs zigzag.conformance` loads it by itself; elsewhere `-p zigzag.conformance.plugin`.
"""

import os
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

from zigzag.backends import get_backend, list_backends
from zigzag.conformance import arrays
from zigzag.conformance.effort import PROFILES, prepare
from zigzag.conformance.example import written
from zigzag.conformance.judging import cell_of, judge
from zigzag.reference.errors import ZigzagError


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("zigzag", "conformance of a backend of zigzag")
    group.addoption("--backend", help="run the parity suite on this backend only, also one that is registered")
    group.addoption("--load", metavar="MODULE", help="a module that calls zigzag.register_backend")
    group.addoption("--device", default="cpu", help="where the parity suite makes its torch tensors, as cuda")
    group.addoption("--op", action="append", default=[], help="of the tests of ops only those of this one; repeatable")
    group.addoption("--profile", choices=list(PROFILES), default="dev", help="how many examples are drawn")
    group.addoption("--max-examples", type=int, help="examples of each test, instead of its own number")
    group.addoption("--seed", type=int, help="of the examples; without it they are the same each time")
    group.addoption("--examples", metavar="FOLDER", default="conform-failures", help="for failures too long to print")


@pytest.hookimpl(trylast=True)  # a conftest may register backends
def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "on_backend: a test that runs on one backend, the one of its parameter")
    config.addinivalue_line("markers", "judges(property, op): what a test is of in the table of `zigzag conform`")
    seed = config.getoption("--seed")
    prepare(config.getoption("--profile"), config.getoption("--max-examples"), seeded=seed is not None)
    if seed is not None:
        import hypothesis

        hypothesis.core.global_force_seed = seed
    arrays.DEVICE = config.getoption("--device")
    if arrays.DEVICE == "cpu":
        os.environ.setdefault("TRITON_INTERPRET", "1")  # must be set before Triton is imported
    else:
        arrays.DTYPES["triton"] = ("float32", "float16", "bfloat16")
    for option, act in (("--load", import_module), ("--backend", get_backend)):
        if given := config.getoption(option):
            try:
                act(given)
            except (ImportError, ZigzagError) as error:
                raise pytest.UsageError(f"{option} {given}: {error}") from error


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "backend" in metafunc.fixturenames:
        wanted = metafunc.config.getoption("--backend")
        marks = [
            pytest.param(b.name, marks=(pytest.mark.on_backend, *(() if b.available else (skipped(b.reason),))))
            for b in list_backends()
            if wanted in (None, b.name)
        ]
        metafunc.parametrize("backend", marks)


def skipped(reason: str) -> pytest.MarkDecorator:
    return pytest.mark.skip(reason=reason)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not (wanted := config.getoption("--op")):
        return
    kept = [item for item in items if (cell := cell_of(item)) is not None and cell[0] in wanted]
    config.hook.pytest_deselected(items=[item for item in items if item not in set(kept)])
    items[:] = kept


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    judge.begin()
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo) -> Iterator[None]:
    """Adds to a report which cells its test reached, and the one that failed with the call that shows it."""
    report = yield
    if call.when == "call" and (cell := cell_of(item)) is not None and "backend" in item.fixturenames:
        op, name = cell
        reached = judge.reached | ({name} if report.passed and op in judge.ops else set())
        report.user_properties += [("op", op), ("reached", sorted(reached))]
        if report.failed:
            report.user_properties += [("failed", judge.failed or name), *_told(item, call)]
    return report


def _told(item: pytest.Item, call: pytest.CallInfo) -> list[tuple[str, object]]:
    config, error = item.config, call.excinfo.value
    lines: list[str] = []
    if judge.call is not None:
        load, device, folder = (config.getoption(name) for name in ("--load", "--device", "--examples"))
        lines = written(judge.call, item.callspec.params["backend"], load=load, device=device, folder=Path(folder))
    first = next(iter(str(error).strip().splitlines()), "")
    return [("message", f"{type(error).__name__}: {first}" if first else type(error).__name__), ("example", lines)]
