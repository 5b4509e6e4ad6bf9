"""What the whole suite needs; its options are the parity suite's."""

import os
from pathlib import Path
from typing import Any

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch and NumPy are imported: a core for each worker

import cupy_on_numpy
import pytest

pytest_plugins = ["zigzag.conformance.plugin"]


def pytest_configure(config: pytest.Config) -> None:
    cupy_on_numpy.register()


@pytest.fixture(scope="session")
def short_smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2's GGUF file, cut; skips without the wheel."""
    from models import smollm2, write_short_smollm2

    smollm2()
    path = tmp_path_factory.mktemp("gguf") / "short.gguf"
    write_short_smollm2(path)
    return path


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The kernels that are called, in their order."""
    from zigzag.backends.triton import linear, norms, rotary, swiglu

    called: list[str] = []
    kernels = {"rotate": rotary, "add_rms_norm": norms, "rms_norm": norms, "several": linear, "swiglu": swiglu}
    for name, module in kernels.items():
        function = getattr(module, name)

        def noting(*args: Any, function: Any = function, name: str = name, **options: Any) -> Any:
            called.append(name)
            return function(*args, **options)

        monkeypatch.setattr(module, name, noting)
    return called
