"""The window, and what of a share streams."""

from dataclasses import FrozenInstanceError

import pytest

from zigzag.plans.window import Window, num_streaming, one_budget
from zigzag.reference.errors import ArgumentError


def test_what_it_says() -> None:
    assert Window(4, 16).mask == {"sink": 4, "recent": 16, "align": 1}
    assert Window(8, 16, 8).mask == {"sink": 8, "recent": 16, "align": 8} and Window(8, 16, 8).size == 24
    assert Window(4, 16) == Window(4, 16) != Window(16, 4) and len({Window(4, 16), Window(4, 16)}) == 1


def test_it_stays_as_it_was_checked() -> None:
    with pytest.raises(FrozenInstanceError):
        Window(4, 16).sink = -1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("window", "words"),
    [
        ((-1, 4, 1), "Window: sink must"),
        ((4, -1, 1), "Window: recent must"),
        ((4, 6, 4), "Window: recent must be a mult"),
    ],
)
def test_the_wrong_size_is_named(window: tuple[int, int, int], words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        Window(*window)


def test_a_share_of_all_and_of_none() -> None:
    assert [num_streaming("x", 10, share) for share in (0, 0.1, 0.3, 0.999, 1)] == [0, 1, 3, 9, 10]
    for share in (-1e-3, 1 + 1e-3):
        with pytest.raises(ArgumentError, match=f"^x: sparsity must be between 0 and 1, got {share}$"):
            num_streaming("x", 10, share)


def test_the_only_budget() -> None:
    assert one_budget("x", a=None, b=0.0) == ("b", 0.0)
    with pytest.raises(ArgumentError, match=r"^x: exactly one of a, b is needed, got a 1 and b 2$"):
        one_budget("x", a=1, b=2)
    with pytest.raises(ArgumentError, match=r"^x: exactly one of a, b is needed, got none$"):
        one_budget("x", a=None, b=None)
