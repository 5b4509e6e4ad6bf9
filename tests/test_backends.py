"""Choosing a backend: the order, the refusals, other people's backends."""

import logging
import threading

import numpy as np
import pytest

import zigzag
from zigzag import backends, ops, reference
from zigzag.backends import registry
from zigzag.reference.errors import BackendError

POSITIONS = np.arange(3)


class Counting:
    """A backend of one op that counts its calls."""

    ARRAY_KINDS = ("numpy",)

    def __init__(self) -> None:
        self.calls = 0

    def visible(self, *args, **kwargs):
        self.calls += 1
        return reference.visible(*args, **kwargs)


@pytest.fixture
def counting():
    backend = Counting()
    zigzag.register_backend("counting", backend)
    yield backend
    zigzag.unregister_backend("counting")


def test_order_of_choice(counting: Counting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZIGZAG_BACKEND", "counting")
    ops.visible(POSITIONS, POSITIONS)
    assert counting.calls == 1
    with zigzag.use_backend("numpy"):
        ops.visible(POSITIONS, POSITIONS)
        assert counting.calls == 1
        ops.visible(POSITIONS, POSITIONS, backend="counting")
        assert counting.calls == 2


def test_use_backend_stays_in_its_thread(counting: Counting) -> None:
    with zigzag.use_backend("counting"):
        thread = threading.Thread(target=lambda: ops.visible(POSITIONS, POSITIONS))
        thread.start()
        thread.join()
    assert counting.calls == 0


def test_listed(counting: Counting) -> None:
    info = {b.name: b for b in zigzag.list_backends()}
    assert info["counting"].ops == ("visible",)
    assert info["numpy"].available and set(info["numpy"].ops) == set(reference.OPS)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: ops.visible(POSITIONS, POSITIONS, backend="nothing"), "not known; known: numpy, triton, torch"),
        (lambda: ops.visible(POSITIONS, POSITIONS, backend=3), "must be a name"),
        (lambda: ops.visible(POSITIONS, POSITIONS, backend="torch"), "takes torch arrays, got a numpy array"),
        (lambda: ops.merge(POSITIONS, POSITIONS, backend="counting"), "does not support it; these do: numpy"),
        (lambda: zigzag.register_backend("numpy", Counting()), "is taken"),
        (lambda: zigzag.register_backend("auto", Counting()), "non-empty string"),
        (lambda: zigzag.register_backend("empty", object()), "none of the ops"),
        (lambda: zigzag.unregister_backend("nothing"), "no backend was registered"),
        (lambda: zigzag.use_backend("nothing").__enter__(), "not known"),
        (
            lambda: ops.assign_heads(type("Odd", (), {"__module__": "odd"})(), 1),
            "no backend takes arrays of type odd.Odd",
        ),
    ],
)
def test_refusals(counting: Counting, call, message: str) -> None:
    with pytest.raises(zigzag.ZigzagError, match=message):
        call()


def test_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "find_spec", lambda name: None)
    with pytest.raises(zigzag.BackendError, match="needs 'torch', which is not installed: pip install torch"):
        backends.get_backend("torch")
    assert not {b.name: b for b in zigzag.list_backends()}["torch"].available


def test_automatic_choice_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    registry._announced.clear()
    with caplog.at_level(logging.INFO, logger="zigzag"):
        ops.visible(POSITIONS, POSITIONS)
        ops.visible(POSITIONS, POSITIONS)
    assert [r.getMessage() for r in caplog.records] == [
        "backend 'numpy' chosen automatically: the arrays are numpy arrays"
    ]


def test_front_door_checks_before_the_backend() -> None:
    with pytest.raises(zigzag.ArgumentError, match=r"sink \+ recent"):
        ops.attention(np.zeros((1, 1, 1, 1)), np.zeros((1, 1, 1, 1)), np.zeros((1, 1, 1, 1)), sink=0)


@pytest.fixture
def fresh():
    """No choice is kept from before, nor what the test made of it."""
    registry.forget_choices()
    yield
    registry.forget_choices()


def test_gradients_that_a_backend_would_lose(monkeypatch: pytest.MonkeyPatch, fresh: None) -> None:
    """The automatic choice leaves it aside, a named one is refused; without a gradient both take it, call by call."""
    torch = pytest.importorskip("torch")
    kernels = pytest.importorskip("zigzag.backends.triton")
    from zigzag.backends import torch as plain_ops

    plain, wanting = torch.zeros(1), torch.zeros(1, requires_grad=True)
    found = {"triton": kernels, "torch": plain_ops}
    monkeypatch.setattr(registry, "get_backend", found.get)
    monkeypatch.setattr(registry, "_serves", lambda *given: True)

    def taken(backend: str, *arrays: object) -> object:
        return registry.lookup("attention", backend, plain, differentiable=arrays)

    for _ in range(2):
        assert taken("auto", plain, None) is kernels.attention
        assert taken("auto", plain, wanting) is plain_ops.attention
        assert taken("triton", plain) is kernels.attention
        with pytest.raises(BackendError, match=r"attention: backend 'triton' gives no gradients.*torch.no_grad"):
            taken("triton", plain, wanting)
        with torch.no_grad():
            assert taken("auto", plain, wanting) is taken("triton", wanting) is kernels.attention


def test_a_choice_is_kept_and_asked_again_when_it_may_differ(monkeypatch: pytest.MonkeyPatch, fresh: None) -> None:
    """Each circumstance changed by itself after a choice was kept for the others."""
    asked, ask = [], registry.get_backend
    monkeypatch.setattr(registry, "get_backend", lambda name: asked.append(name) or ask(name))
    first, second = Counting(), Counting()
    zigzag.register_backend("first", first)
    zigzag.register_backend("second", second)
    try:
        ops.visible(POSITIONS, POSITIONS, backend="first")
        assert "first" in asked
        asked.clear()
        for _ in range(2):
            ops.visible(POSITIONS, POSITIONS, backend="first")
        assert first.calls == 3 and not asked
        ops.visible(POSITIONS, POSITIONS)
        ops.visible(POSITIONS, POSITIONS, backend="second")
        with zigzag.use_backend("second"):
            ops.visible(POSITIONS, POSITIONS)
        monkeypatch.setenv("ZIGZAG_BACKEND", "first")
        ops.visible(POSITIONS, POSITIONS)
        monkeypatch.setenv("ZIGZAG_BACKEND", "second")
        ops.visible(POSITIONS, POSITIONS)
        monkeypatch.delenv("ZIGZAG_BACKEND")
        ops.visible(POSITIONS, POSITIONS)
        assert (first.calls, second.calls) == (4, 3)
        with pytest.raises(BackendError, match="'first' does not support it"):
            ops.assign_heads(np.zeros((1, 1)), 1, backend="first")
        first.visible = lambda *args, **kwargs: "another"
        assert ops.visible(POSITIONS, POSITIONS, backend="first") == "another"
    finally:
        zigzag.unregister_backend("first")
        zigzag.unregister_backend("second")


def test_registering_forgets_choices(fresh: None) -> None:
    """Under the same name another backend, then none."""
    one, other = Counting(), Counting()
    for backend in (one, other):
        zigzag.register_backend("counting", backend)
        ops.visible(POSITIONS, POSITIONS, backend="counting")
        zigzag.unregister_backend("counting")
    assert (one.calls, other.calls) == (1, 1)
    with pytest.raises(BackendError, match="'counting' is not known"):
        ops.visible(POSITIONS, POSITIONS, backend="counting")


def test_an_answer_that_comes_late_is_not_kept(monkeypatch: pytest.MonkeyPatch, fresh: None) -> None:
    """A backend is taken away while a call looks it up: the next call must not find it."""
    ask = registry.get_backend
    zigzag.register_backend("counting", Counting())

    def late(name: str) -> object:
        backend = ask(name)
        zigzag.unregister_backend("counting")
        return backend

    monkeypatch.setattr(registry, "get_backend", late)
    monkeypatch.setattr(registry, "_check_kind", lambda *given: None)
    ops.visible(POSITIONS, POSITIONS, backend="counting")
    monkeypatch.setattr(registry, "get_backend", ask)
    with pytest.raises(BackendError, match="'counting' is not known"):
        ops.visible(POSITIONS, POSITIONS, backend="counting")


def test_choices_of_other_arrays_are_others(fresh: None) -> None:
    """By their type, dtype and device type; refusals are not kept, and a dtype may be without a hash."""

    class Array(np.ndarray):
        __module__ = "numpy"

    class Odd:
        __module__ = "numpy"

        def __init__(self) -> None:
            self.dtype = ["no hash"]

    assert registry.lookup("visible", "numpy", POSITIONS) is reference.visible
    for _ in range(2):
        with pytest.raises(BackendError, match="takes torch arrays, got a numpy array"):
            registry.lookup("visible", "torch", POSITIONS)
        assert registry.lookup("visible", "auto", Odd()) is reference.visible
    before = len(registry._kept)
    for array in (POSITIONS, POSITIONS.astype(np.int16), POSITIONS.view(Array)):
        registry.lookup("visible", "auto", array)
        registry.lookup("visible", "auto", array)
    assert len(registry._kept) == before + 3


def test_choices_that_are_kept_are_bounded(monkeypatch: pytest.MonkeyPatch, fresh: None) -> None:
    monkeypatch.setattr(registry, "MOST_KEPT", 2)
    for dtype in (np.int8, np.int16, np.int32, np.int64):
        assert registry.lookup("visible", "auto", POSITIONS.astype(dtype)) is reference.visible
    assert len(registry._kept) == 2


def test_whether_a_backend_can_run_is_asked_again_in_another_environment(
    monkeypatch: pytest.MonkeyPatch, fresh: None
) -> None:
    torch = pytest.importorskip("torch")
    kernels = pytest.importorskip("zigzag.backends.triton")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert registry.lookup("attention", "triton", torch.zeros(1)) is kernels.attention
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(BackendError, match="'triton' cannot run here: it needs a CUDA device"):
        registry.lookup("attention", "triton", torch.zeros(1))


def test_the_environment_is_not_read_for_arrays_on_a_card(monkeypatch: pytest.MonkeyPatch, fresh: None) -> None:
    """Where they can be, kernels can run; and a call costs the less."""
    torch = pytest.importorskip("torch")
    kernels = pytest.importorskip("zigzag.backends.triton")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)

    class OnCard:
        is_cuda, dtype = True, torch.float16

    OnCard.__module__ = "torch"
    asked: list[str] = []

    class Environment(dict):
        def get(self, name: str, default: str | None = None) -> str | None:
            asked.append(name)
            return default

    monkeypatch.setattr(registry.os, "environ", Environment())
    for _ in range(2):
        assert registry.lookup("attention", "triton", OnCard()) is kernels.attention
    assert registry.AVAILABILITY not in asked
