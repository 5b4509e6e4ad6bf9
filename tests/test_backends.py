"""Choosing a backend: the order, the refusals, other people's backends."""

import logging
import threading
from types import SimpleNamespace

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


def test_gradients_that_a_backend_would_lose(monkeypatch: pytest.MonkeyPatch) -> None:
    """The automatic choice leaves it aside, a named one is refused; without a gradient both take it."""
    torch = pytest.importorskip("torch")
    kernels = pytest.importorskip("zigzag.backends.triton")
    plain, wanting = torch.zeros(1), torch.zeros(1, requires_grad=True)

    monkeypatch.setattr(registry, "_reason", lambda name: "")
    monkeypatch.setattr(registry, "get_backend", lambda name: kernels)
    monkeypatch.setattr(kernels, "takes", lambda array: True)

    def serves(*arrays: object) -> bool:
        return registry._serves("triton", "attention", SimpleNamespace(is_cuda=True), arrays)

    assert serves(plain, None) and not serves(plain, wanting)
    registry._check_gradients("attention", "triton", (plain,))
    with pytest.raises(BackendError, match=r"attention: backend 'triton' gives no gradients.*torch.no_grad"):
        registry._check_gradients("attention", "triton", (plain, wanting))
    with torch.no_grad():
        assert serves(plain, wanting)
        registry._check_gradients("attention", "triton", (wanting,))
