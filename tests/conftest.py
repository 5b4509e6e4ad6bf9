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


@pytest.fixture
def fixed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Caches at fixed addresses, as on a GPU; the steps run as they are."""
    from replays import fixed_on_cpu  # with torch, which not every test has

    fixed_on_cpu(monkeypatch)


@pytest.fixture
def order(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What comes after what: "fed" and "read"."""
    from replays import order_of

    return order_of(monkeypatch)


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> list:
    """Models on the CPU run as on a GPU, steps replayed; the captured ones."""
    from replays import replay_on_cpu

    return replay_on_cpu(monkeypatch)
