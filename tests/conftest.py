"""Options and fixtures of the whole suite."""

import os

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch and NumPy are imported: a core for each worker

import arrays
import cupy_on_numpy
import hypothesis
import pytest

from zigzag.backends import list_backends

hypothesis.settings.register_profile("zigzag", deadline=None, derandomize=True, max_examples=40, print_blob=True)
hypothesis.settings.load_profile("zigzag")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--backend", help="run the parity suite on this backend only, also one registered by a plugin")
    parser.addoption("--device", default="cpu", help="where the parity suite makes its torch tensors, as cuda")


def pytest_configure(config: pytest.Config) -> None:
    arrays.DEVICE = config.getoption("--device")
    if arrays.DEVICE == "cpu":
        os.environ.setdefault("TRITON_INTERPRET", "1")  # must be set before Triton is imported
    else:
        arrays.DTYPES["triton"] = ("float32", "float16", "bfloat16")
    cupy_on_numpy.register()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "backend" in metafunc.fixturenames:
        wanted = metafunc.config.getoption("--backend")
        known = list_backends()
        if wanted and wanted not in {b.name for b in known}:
            raise pytest.UsageError(f"--backend {wanted}: known are {', '.join(b.name for b in known)}")
        marks = [
            pytest.param(b.name, marks=() if b.available else pytest.mark.skip(reason=b.reason))
            for b in known
            if wanted in (None, b.name)
        ]
        metafunc.parametrize("backend", marks)
