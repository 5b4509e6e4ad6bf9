"""The pytest plugin of the suite: which backend it runs on, and where."""

import os
from importlib import import_module

import hypothesis
import pytest

from zigzag.backends import get_backend, list_backends
from zigzag.conformance import arrays
from zigzag.reference.errors import ZigzagError

hypothesis.settings.register_profile("zigzag", deadline=None, derandomize=True, max_examples=40, print_blob=True)
hypothesis.settings.load_profile("zigzag")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--backend", help="run the parity suite on this backend only, also one that is registered")
    parser.addoption("--load", metavar="MODULE", help="a module that calls zigzag.register_backend")
    parser.addoption("--device", default="cpu", help="where the parity suite makes its torch tensors, as cuda")


@pytest.hookimpl(trylast=True)  # a conftest may register backends
def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "on_backend: a test that runs on one backend, the one of its parameter")
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
