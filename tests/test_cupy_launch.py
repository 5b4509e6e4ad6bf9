"""What a dependent launch hands to the driver, without one: the structures of cuda.h, arguments, errors."""

import ctypes
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from test_cupy_kernels import fake

from zigzag.backends.cupy.raw import launch as cupy_launch
from zigzag.backends.cupy.raw.launch import Attribute, Config

STREAM, FUNCTION = 11, 12


class Card:
    """CuPy's calls and the driver's: what it was asked, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capability: int = 90, error: int = 0) -> None:
        self.asked: list = []
        self.error = error
        self.kernel = SimpleNamespace(ptr=FUNCTION)
        runtime = SimpleNamespace(getDevice=lambda: 3, setDevice=lambda device: self.asked.append(("device", device)))
        cuda = SimpleNamespace(
            runtime=runtime,
            get_current_stream=lambda: SimpleNamespace(ptr=STREAM),
            driver=SimpleNamespace(CUDADriverError=RuntimeError),
        )
        monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(cuda=cuda))
        monkeypatch.setattr(cupy_launch, "_capability", lambda device: capability)
        monkeypatch.setattr(cupy_launch, "_driver", lambda: self.launch)

    def launch(self, config, function, arguments, extra) -> int:
        given = config._obj
        attributes = [(given.attributes[n].id, given.attributes[n].value) for n in range(given.num_attributes)]
        words = [ctypes.cast(at, ctypes.POINTER(ctypes.c_uint)).contents.value for at in arguments]
        self.asked.append(
            (tuple(given.grid), tuple(given.block), given.shared_bytes, given.stream, attributes, function.value, words)
        )
        assert extra is None
        return self.error

    def __call__(self, *arguments, shared_mem: int) -> None:
        """As CuPy's kernel is launched."""
        self.asked.append(("CuPy", *arguments, shared_mem))

    @property
    def max_dynamic_shared_size_bytes(self) -> int:
        raise AssertionError("nobody asks for it")

    @max_dynamic_shared_size_bytes.setter
    def max_dynamic_shared_size_bytes(self, shared: int) -> None:
        self.asked.append(("granted", shared))


def test_structures_are_those_of_the_header() -> None:
    """Sizes and offsets as a C compiler gives them for CUDA 13's cuda.h on 64 bits."""
    assert (ctypes.sizeof(Config), Config.stream.offset, Config.attributes.offset) == (56, 32, 40)
    assert (Config.shared_bytes.offset, Config.num_attributes.offset) == (24, 48)
    assert (ctypes.sizeof(Attribute), Attribute.value.offset) == (72, 8)


def test_a_launch_is_dependent(monkeypatch: pytest.MonkeyPatch) -> None:
    card, array = Card(monkeypatch), fake(4)
    cupy_launch.queue(card, (5, 6), 128, (array, np.int32(7), np.float32(1)))
    low = array.ctypes.data & 0xFFFFFFFF
    serialization = [(6, 1)]  # programmatic stream serialization, allowed
    launched = ((5, 6, 1), (128, 1, 1), 0, STREAM, serialization, FUNCTION, [low, 7, 0x3F800000])
    assert card.asked == [("device", 3), launched]


def test_older_cards_have_no_dependent_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    card = Card(monkeypatch, capability=80)
    cupy_launch.queue(card, (5,), 128, (np.int32(7),))
    assert card.asked == [("CuPy", (5,), (128,), (np.int32(7),), 0)]


def test_without_the_driver_s_library_cupy_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    driver, card = cupy_launch._driver.__wrapped__, Card(monkeypatch)
    monkeypatch.setattr(cupy_launch, "LIBRARY", "libcuda.not.there")
    monkeypatch.setattr(cupy_launch, "_driver", driver)
    cupy_launch.queue(card, (5,), 128, ())
    assert card.asked == [("CuPy", (5,), (128,), (), 0)]


def test_the_driver_s_errors_are_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    card = Card(monkeypatch, error=700)
    with pytest.raises(RuntimeError, match="700"):
        cupy_launch.queue(card, (1,), 32, ())


@pytest.mark.parametrize("capability", [80, 90])
def test_shared_memory_is_asked_for_once_on_each_device(capability: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it is 48 KiB: with what the kernel's own text names it is more, and a launch would fail."""
    card, most = Card(monkeypatch, capability), 48 * 1024
    for device, shared in ((3, 0), (3, most), (3, most), (4, most)):
        monkeypatch.setattr(sys.modules["cupy"].cuda.runtime, "getDevice", lambda device=device: device)
        cupy_launch.queue(card, (5,), 128, (), shared)
    given = [("launched", asked[4 if capability == 80 else 2]) for asked in card.asked if len(asked) > 4]
    granted = [n for n, asked in enumerate(card.asked) if asked[0] == "granted"]
    assert given == [("launched", 0), *[("launched", most)] * 3]
    assert [card.asked[n] for n in granted] == [("granted", most)] * 2
    assert all(card.asked[n - 1][0] == "device" for n in granted)
    later = [len([asked for asked in card.asked[:n] if len(asked) > 4]) for n in granted]
    assert later == [1, 3]  # launches before it: of the first device one, of the second none
