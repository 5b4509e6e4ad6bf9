"""Launches whose kernel is kept: what is launched by Triton itself, what directly, and that no key says too little."""

import gc
import json
import os
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("triton", reason="triton is not installed")

from triton.compiler import CompiledKernel  # noqa: E402
from triton.runtime.jit import JITFunction  # noqa: E402

from zigzag.backends.triton import kept  # noqa: E402
from zigzag.backends.triton.kept import Launch, launch  # noqa: E402

ROOT = Path(__file__).resolve().parents[3]


class Compiled(CompiledKernel):
    """What Triton's launch gives back; counts what is launched without it."""

    module, function, packed_metadata = None, 7, ("metadata",)

    def __init__(self) -> None:
        self.direct: list[tuple] = []

    @property
    def run(self):
        direct = self.direct  # and not the kernel, which Triton's launcher does not hold either
        return lambda *given: direct.append(given)


class Kernel(JITFunction):
    """Two arrays, two numbers, two constants; `compiled` has one entry for each launch by Triton."""

    __hash__ = object.__hash__

    def __init__(self, result=Compiled) -> None:
        self.arg_names, self.pre_run_hooks = ["x", "y", "m", "n", "A", "B"], []
        self.result, self.compiled, self.given = result, [], []

    def __getitem__(self, grid):
        def run(*arguments, **options):
            self.given.append((grid, arguments, options))
            self.compiled.append(self.result())
            return self.compiled[-1]

        return run

    def counts(self) -> tuple[int, int]:
        """(launches by Triton, launches without it)"""
        return len(self.compiled), sum(len(one.direct) for one in self.compiled if isinstance(one, Compiled))


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Two devices, of which the CPU's tensors lie on the first; and a version of Triton that was read."""
    state = SimpleNamespace(device=0, stream=100)
    active = SimpleNamespace(
        get_current_device=lambda: state.device, get_current_stream=lambda device: state.stream + device
    )
    monkeypatch.setattr(kept, "driver", SimpleNamespace(active=active))
    monkeypatch.setattr(kept, "_index", lambda device: 0 if device.type == "cpu" else None)
    monkeypatch.setattr(kept.triton, "__version__", "3.6.0")
    return state


def arrays(offset: int = 0) -> tuple:
    """float32, the second moved by so many elements from a multiple of 16 bytes."""
    base = torch.zeros(64)
    start = -base.data_ptr() // 4 % 4
    return base[start : start + 8], base[start + 16 + offset : start + 24 + offset]


def of(kernel: Kernel) -> Launch:
    return Launch(kernel, (3, 2), (5, 0.5), B="b", A="a", num_warps=4)


def test_the_second_launch_goes_to_the_kernel(card: SimpleNamespace) -> None:
    kernel = Kernel()
    launched, (x, y) = of(kernel), arrays()
    launched(x, y)
    assert kernel.counts() == (1, 0)
    assert kernel.given == [((3, 2, 1), (x, y, 5, 0.5), {"B": "b", "A": "a", "num_warps": 4})]
    card.stream = 300
    launched(*(others := arrays()))
    places = [array.data_ptr() for array in others]
    assert kernel.counts() == (1, 1)
    assert kernel.compiled[0].direct == [
        (3, 2, 1, 300, 7, ("metadata",), None, None, None, *places, 5, 0.5, "a", "b"),
    ]


def test_alignments_are_told_apart(card: SimpleNamespace) -> None:
    kernel = Kernel()
    launched = of(kernel)
    for offset, counts in ((0, (1, 0)), (1, (2, 0)), (4, (2, 1)), (2, (2, 2)), (3, (2, 3)), (8, (2, 4))):
        launched(*arrays(offset))
        assert kernel.counts() == counts
    launched(*arrays(1)[::-1])  # the other one
    assert kernel.counts() == (3, 4)
    assert [len(one.direct) for one in kernel.compiled] == [2, 2, 0]


def test_another_current_device_is_another_launch(card: SimpleNamespace) -> None:
    """There Triton launches by itself, since the arrays lie elsewhere; back on the first, the kernel is still kept."""
    kernel = Kernel()
    launched = of(kernel)
    launched(*arrays())
    card.device = 1
    launched(*arrays())
    launched(*arrays())
    assert kernel.counts() == (3, 0)
    card.device = 0
    launched(*arrays())
    assert kernel.counts() == (3, 1)


def test_arrays_elsewhere_are_not_kept(card: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory of the host may be readable once and not the next time: Triton looks each time."""
    x, y = arrays()
    monkeypatch.setattr(kept, "_index", lambda device: next(indices))
    for places in ((0, None), (None, 0), (1, 0), (0, 1)):
        kernel = Kernel()
        launched = of(kernel)
        for _ in range(2):
            indices = iter(places)
            launched(x, y)
        assert kernel.counts() == (2, 0), places


@pytest.mark.parametrize(
    ("holder", "name", "value"),
    [
        ("runtime", "launch_enter_hook", lambda metadata: None),
        ("runtime", "launch_exit_hook", lambda metadata: None),
        ("runtime", "launch_enter_hook", SimpleNamespace(calls=[print])),
        ("runtime", "launch_exit_hook", SimpleNamespace(calls=[print])),
        ("runtime", "debug", True),
        ("runtime", "add_stages_inspection_hook", print),
        ("compilation", "instrumentation_mode", "fpsan"),
    ],
)
def test_whoever_listens_is_told(
    holder: str, name: str, value: object, card: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then Triton launches, and what it compiled for that is not kept; afterwards what was kept before is."""
    kernel = Kernel()
    launched = of(kernel)
    with monkeypatch.context() as listening:
        listening.setattr(getattr(kept.knobs, holder), name, value)
        launched(*arrays())
        launched(*arrays())
        assert kernel.counts() == (2, 0)
    launched(*arrays())
    launched(*arrays())
    assert kernel.counts() == (3, 1)
    with monkeypatch.context() as listening:
        listening.setattr(getattr(kept.knobs, holder), name, value)
        launched(*arrays())
    assert kernel.counts() == (4, 1)
    kernel.pre_run_hooks.append(print)
    launched(*arrays())
    assert kernel.counts() == (5, 1)


@pytest.mark.parametrize("hook", [None, SimpleNamespace(calls=[])])
def test_nobody_listens(hook: object, card: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept.knobs.runtime, "launch_enter_hook", hook)
    monkeypatch.setattr(kept.knobs.runtime, "launch_exit_hook", hook)
    kernel = Kernel()
    launched = of(kernel)
    launched(*arrays())
    launched(*arrays())
    assert kernel.counts() == (1, 1)


def test_other_versions_launch_by_themselves(card: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    for version, counts in (
        ("3.3.1", (2, 0)),
        ("3.5.1", (2, 0)),
        ("3.7.1", (2, 0)),
        ("3.10.0", (2, 0)),
        ("3.60.0", (2, 0)),
        ("3.6.0", (1, 1)),
        ("3.8.0", (1, 1)),
        ("3.9.0", (1, 1)),
    ):
        monkeypatch.setattr(kept.triton, "__version__", version)
        monkeypatch.setattr(kept, "knobs", kept.triton.knobs if counts == (1, 1) else None)  # 3.3 has none
        kernel = Kernel()
        launched = of(kernel)
        launched(*arrays())
        launched(*arrays())
        assert kernel.counts() == counts, version


def test_what_is_kept_stays_loaded(card: SimpleNamespace) -> None:
    """Though Triton forgets the kernel, which it unloads when nobody holds it."""
    kernel = Kernel()
    launched = of(kernel)
    launched(*arrays())
    held = weakref.ref(kernel.compiled.pop())
    gc.collect()
    launched(*arrays())
    assert held() is not None and len(held().direct) == 1 and kernel.counts() == (0, 0)


def test_what_is_no_kernel_is_not_kept(card: SimpleNamespace) -> None:
    """A hook of the compiler may leave nothing; the interpreter's functions are of another class."""
    kernel = Kernel(result=lambda: None)
    launched = of(kernel)
    launched(*arrays())
    launched(*arrays())
    assert kernel.counts() == (2, 0)


def test_a_launch_that_failed_is_not_remembered(card: SimpleNamespace) -> None:
    def fails() -> Compiled:
        raise ValueError("cannot be launched")

    kernel = Kernel(result=fails)
    launched = of(kernel)
    for _ in range(2):
        with pytest.raises(ValueError, match="cannot be launched"):
            launched(*arrays())
    kernel.result = Compiled
    launched(*arrays())
    assert kernel.counts() == (1, 0)


def test_two_threads_launch_first(card: SimpleNamespace) -> None:
    """Both find nothing kept: each is launched once, and later ones go to one of the two."""
    both = threading.Barrier(2)
    kernel = Kernel(result=lambda: both.wait(10) is None or Compiled())
    launched = of(kernel)
    threads = [threading.Thread(target=launched, args=arrays()) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert kernel.counts() == (2, 0)
    launched(*arrays())
    assert kernel.counts() == (2, 1)


def test_launches_are_told_apart_by_all_they_are_given(card: SimpleNamespace) -> None:
    kernel, (x, y) = Kernel(), arrays()
    given = [
        (kernel, (1,), (x, y), (1, 2), {"A": 1, "B": 2}),
        (kernel, (2,), (x, y), (1, 2), {"A": 1, "B": 2}),
        (kernel, (1,), (x, y), (1, 3), {"A": 1, "B": 2}),
        (kernel, (1,), (x, y), (1.0, 2), {"A": 1, "B": 2}),
        (kernel, (1,), (x, y.view(torch.int32)), (1, 2), {"A": 1, "B": 2}),
        (kernel, (1,), (x, y), (1, 2), {"A": 2, "B": 1}),
        (kernel, (1,), (x, y), (1, 2), {"A": 1, "B": 2, "num_warps": 8}),
        (Kernel(), (1,), (x, y), (1, 2), {"A": 1, "B": 2}),
    ]
    for one, grid, both, numbers, options in given:
        launch(one, grid, both, numbers, **options)
    assert kernel.counts() == (7, 0)
    for one, grid, both, numbers, options in given:
        launch(one, grid, both, numbers, **options)
    assert kernel.counts() == (7, 7)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What `tests/launch_keys.py` found, in a process of its own: this one interprets kernels."""
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    env |= {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    env |= {"TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton"))}
    run = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "launch_keys.py")],
        cwd=ROOT, env=env, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-4000:]
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.skipif(not kept.triton.__version__.startswith(kept.READ), reason="kept with other versions of Triton")
def test_kernels_are_called_as_triton_calls_them(report: dict) -> None:
    """Two launches each of attention, mixed attention and greedy verification; changed calls are noticed."""
    assert report["called alike"] == [True] * 6
    assert report["called otherwise"] == [False] * 3


def test_no_key_says_less_than_that_of_triton(report: dict) -> None:
    """Over the kernels of attention and the acceptance rules: launches with one key of ours have one of Triton's."""
    assert report["confused"] == []
    assert report["without alignment"] > 0 and report["without dtypes"] > 0  # shorter keys would be noticed
    assert set(report["kernels"]) >= {"_kernel", "mixed", "_merge", "scan", "judge", "weigh", "recover", "sum_terms"}
    assert report["launches"] - report["keys"] > 300  # that many share their key with another
