"""What the whole suite needs; its options are the parity suite's."""

import os

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch and NumPy are imported: a core for each worker

import cupy_on_numpy
import pytest

pytest_plugins = ["zigzag.conformance.plugin"]


def pytest_configure(config: pytest.Config) -> None:
    cupy_on_numpy.register()
